"""Data movement: tokens to expert order and back."""

from types import ModuleType

from torch import Tensor

from storyteller_kernels.dispatch import runs_on_triton
from storyteller_kernels.permute import autograd, reference


def permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """Rows in expert order: row n is token token_N[n].

    Args:
        x_TD: [T, D].
        token_N: [N] int64, token of each row.
        row_TK: [T, K] int64, row of each (token, choice).

    Returns:
        [N, D], in the dtype of `x_TD`.
    """
    return autograd.permute(x_TD, token_N, row_TK, _moves(x_TD))


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
    return autograd.combine(y_ND, weight_TK, token_N, row_TK, _moves(y_ND, weight_TK))


def _moves(*tensors: Tensor) -> ModuleType:
    if not runs_on_triton(*tensors):
        return reference
    from storyteller_kernels.permute import kernel

    return kernel


__all__ = ["combine", "permute"]
