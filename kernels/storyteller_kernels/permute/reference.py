"""Copy tokens into expert order, and combine the expert outputs.

Both gradients are gathers too (`row_TK` inverts `token_N`), so nothing here adds into shared memory
and the same input gives the same bits on every device.
"""

from typing import Any

import torch
from torch import Tensor


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        return x_TD.index_select(0, token_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (row_TK,) = ctx.saved_tensors
        grad_TD = grad_ND.index_select(0, row_TK[:, 0])
        for k in range(1, row_TK.shape[1]):
            grad_TD += grad_ND.index_select(0, row_TK[:, k])
        return grad_TD, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(y_ND, weight_TK, token_N, row_TK)
        out_TD = y_ND.index_select(0, row_TK[:, 0]) * weight_TK[:, :1].to(y_ND.dtype)
        for k in range(1, row_TK.shape[1]):
            out_TD += y_ND.index_select(0, row_TK[:, k]) * weight_TK[:, k : k + 1].to(y_ND.dtype)
        return out_TD

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_ND, weight_TK, token_N, row_TK = ctx.saved_tensors
        weight_N = torch.empty_like(token_N, dtype=weight_TK.dtype)
        weight_N[row_TK.flatten()] = weight_TK.flatten()
        grad_of_row_ND = grad_TD.index_select(0, token_N)
        share_N = torch.linalg.vecdot(grad_of_row_ND.float(), y_ND.float())
        return grad_of_row_ND * weight_N[:, None].to(grad_TD.dtype), share_N[row_TK], None, None


def permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """Rows in expert order: row n is token token_N[n].

    Args:
        x_TD: [T, D].
        token_N: [N] int64, token of each row.
        row_TK: [T, K] int64, row of each (token, choice).

    Returns:
        [N, D], in the dtype of `x_TD`.
    """
    rows_ND: Tensor = _Permute.apply(x_TD, token_N, row_TK)  # type: ignore[no-untyped-call]  # torch's stub
    return rows_ND


def combine(y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """Each token's expert outputs, weighted and added: out[t] = sum_k weight[t, k] * y[row[t, k]].

    Args:
        y_ND: [N, D], the expert outputs in expert order.
        weight_TK: [T, K] fp32.
        token_N: [N] int64, token of each row.
        row_TK: [T, K] int64, row of each (token, choice).

    Returns:
        [T, D], in the dtype of `y_ND`.
    """
    out_TD: Tensor = _Combine.apply(y_ND, weight_TK, token_N, row_TK)  # type: ignore[no-untyped-call]  # torch's stub
    return out_TD
