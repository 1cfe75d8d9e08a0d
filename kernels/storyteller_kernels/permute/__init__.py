"""Data movement: tokens to expert order and back."""

from torch import Tensor

from storyteller_kernels.dispatch import runs_on_triton
from storyteller_kernels.permute import reference


def permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """Rows in expert order; arguments and result as `reference.permute`."""
    if runs_on_triton(x_TD):
        from storyteller_kernels.permute import autograd

        return autograd.permute(x_TD, token_N, row_TK)
    return reference.permute(x_TD, token_N, row_TK)


def combine(y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """The expert outputs, weighted and added; arguments and result as `reference.combine`."""
    if runs_on_triton(y_ND, weight_TK):
        from storyteller_kernels.permute import autograd

        return autograd.combine(y_ND, weight_TK, row_TK)
    return reference.combine(y_ND, weight_TK, token_N, row_TK)


__all__ = ["combine", "permute"]
