"""The Triton kernels of permute and combine as torch operators, with their gradients.

Both gradients are gathers too, because `row_TK` inverts `token_N`.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("storyteller::permute", mutates_args=())
def _permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    from storyteller_kernels.permute.kernel import gather

    return gather(x_TD, token_N)


@_permute.register_fake
def _(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    return x_TD.new_empty(token_N.shape[0], x_TD.shape[1])


@torch.library.custom_op("storyteller::permute_gradient", mutates_args=())
def _permute_gradient(grad_ND: Tensor, row_TK: Tensor) -> Tensor:
    from storyteller_kernels.permute.kernel import scatter_sum

    return scatter_sum(grad_ND, None, row_TK)


@_permute_gradient.register_fake
def _(grad_ND: Tensor, row_TK: Tensor) -> Tensor:
    return grad_ND.new_empty(row_TK.shape[0], grad_ND.shape[1])


@torch.library.custom_op("storyteller::combine", mutates_args=())
def _combine(y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    from storyteller_kernels.permute.kernel import scatter_sum

    return scatter_sum(y_ND, weight_TK, row_TK)


@_combine.register_fake
def _(y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    return y_ND.new_empty(row_TK.shape[0], y_ND.shape[1])


@torch.library.custom_op("storyteller::combine_gradient", mutates_args=())
def _combine_gradient(
    grad_TD: Tensor, y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor
) -> tuple[Tensor, Tensor]:
    from storyteller_kernels.permute.kernel import combine_backward

    return combine_backward(grad_TD, y_ND, weight_TK, token_N, row_TK)


@_combine_gradient.register_fake
def _(grad_TD: Tensor, y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y_ND), torch.empty_like(weight_TK)


def _save_rows(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])


def _permute_backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
    (row_TK,) = ctx.saved_tensors
    return _permute_gradient(grad_ND.contiguous(), row_TK), None, None


def _save_all(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _combine_backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *_combine_gradient(grad_TD.contiguous(), *ctx.saved_tensors), None, None


_permute.register_autograd(_permute_backward, setup_context=_save_rows)
_combine.register_autograd(_combine_backward, setup_context=_save_all)


def permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """See permute of the package."""
    rows_ND: Tensor = _permute(x_TD, token_N, row_TK)
    return rows_ND


def combine(y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """See combine of the package."""
    out_TD: Tensor = _combine(y_ND, weight_TK, token_N, row_TK)
    return out_TD
