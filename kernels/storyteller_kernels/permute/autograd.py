"""permute and combine bound to autograd, over the functions of reference.py or those of kernel.py.

Both gradients are gathers too, for `row_TK` inverts `token_N`.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_N: Tensor, row_TK: Tensor, moves: Any) -> Tensor:
        ctx.save_for_backward(row_TK)
        ctx.moves = moves
        rows_ND: Tensor = moves.gather(x_TD.contiguous(), token_N.contiguous())
        return rows_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None, None]:
        (row_TK,) = ctx.saved_tensors
        return ctx.moves.scatter_sum(grad_ND.contiguous(), None, row_TK.contiguous()), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor, moves: Any) -> Tensor:
        y_ND, weight_TK, row_TK = y_ND.contiguous(), weight_TK.contiguous(), row_TK.contiguous()
        ctx.save_for_backward(y_ND, weight_TK, token_N, row_TK)
        ctx.moves = moves
        out_TD: Tensor = moves.scatter_sum(y_ND, weight_TK, row_TK)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        return *ctx.moves.combine_backward(grad_TD.contiguous(), *ctx.saved_tensors), None, None, None


def permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor, moves: ModuleType) -> Tensor:
    """See permute of the package; `moves`: reference or kernel."""
    rows_ND: Tensor = _Permute.apply(x_TD, token_N, row_TK, moves)  # type: ignore[no-untyped-call]  # torch's stub
    return rows_ND


def combine(y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor, moves: ModuleType) -> Tensor:
    """See combine of the package; `moves`: reference or kernel."""
    out_TD: Tensor = _Combine.apply(y_ND, weight_TK, token_N, row_TK, moves)  # type: ignore[no-untyped-call]  # torch's stub
    return out_TD
