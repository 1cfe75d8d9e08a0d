"""Data movement: tokens to expert order and back."""

from torch import Tensor

from storyteller_kernels.dispatch import runs_on_triton
from storyteller_kernels.permute import autograd, operators


def permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """Rows in expert order: row n is token token_N[n].

    Args:
        x_TD: [T, D].
        token_N: [N] int64, token of each row.
        row_TK: [T, K] int64, row of each (token, choice).

    Returns:
        [N, D], in the dtype of `x_TD`.
    """
    move = operators.permute if runs_on_triton(x_TD) else autograd.permute
    return move(x_TD.contiguous(), token_N.contiguous(), row_TK.contiguous())


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
    move = operators.combine if runs_on_triton(y_ND, weight_TK) else autograd.combine
    return move(y_ND.contiguous(), weight_TK.contiguous(), token_N.contiguous(), row_TK.contiguous())


__all__ = ["combine", "permute"]
