"""Data movement in plain torch: tokens to expert order, rows added to tokens, and the gradient of a weighted sum.

Nothing here uses atomic additions, so the same input gives the same bits every time, on every device. Shapes are those
of kernel.py.
"""

import torch
from torch import Tensor


def gather(x_TD: Tensor, token_N: Tensor) -> Tensor:
    """[N, D]: row n is x[token_N[n]]."""
    return x_TD.index_select(0, token_N)


def scatter_sum(y_ND: Tensor, weight_TK: Tensor | None, row_TK: Tensor) -> Tensor:
    """[T, D]: the sum over k of weight_TK[t, k] * y_ND[row_TK[t, k]]; without weights, all are 1."""

    def term(k: int) -> Tensor:
        rows_TD = y_ND.index_select(0, row_TK[:, k])
        return rows_TD if weight_TK is None else rows_TD * weight_TK[:, k : k + 1].to(y_ND.dtype)

    out_TD = term(0)
    for k in range(1, row_TK.shape[1]):
        out_TD += term(k)
    return out_TD


def combine_backward(
    grad_TD: Tensor, y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the weighted sum with respect to y ([N, D]) and the weights ([T, K] fp32)."""
    weight_N = torch.empty_like(token_N, dtype=weight_TK.dtype)
    weight_N[row_TK.flatten()] = weight_TK.flatten()
    grad_of_row_ND = grad_TD.index_select(0, token_N)
    share_N = torch.linalg.vecdot(grad_of_row_ND.float(), y_ND.float())
    return grad_of_row_ND * weight_N[:, None].to(grad_TD.dtype), share_N[row_TK]
