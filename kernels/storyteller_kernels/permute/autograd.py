"""permute and combine on top of the functions of reference.py, with their gradients.

Both gradients are gathers too, because `row_TK` inverts `token_N`; torch's own gradient of indexing would scatter-add.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from storyteller_kernels.permute import reference


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        return reference.gather(x_TD, token_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (row_TK,) = ctx.saved_tensors
        return reference.scatter_sum(grad_ND.contiguous(), None, row_TK), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(y_ND, weight_TK, token_N, row_TK)
        return reference.scatter_sum(y_ND, weight_TK, row_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *reference.combine_backward(grad_TD.contiguous(), *ctx.saved_tensors), None, None


def permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """See permute of the package."""
    rows_ND: Tensor = _Permute.apply(x_TD, token_N, row_TK)  # type: ignore[no-untyped-call]  # torch's stub
    return rows_ND


def combine(y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """See combine of the package."""
    out_TD: Tensor = _Combine.apply(y_ND, weight_TK, token_N, row_TK)  # type: ignore[no-untyped-call]  # torch's stub
    return out_TD
