"""Root-mean-square normalisation, alone or with the addition to the residual stream before it."""

from torch import Tensor

from storyteller_kernels.dispatch import runs_on_triton
from storyteller_kernels.rms_norm import reference

MAX_WIDTH = 8192
"""Widest row that a Triton program holds in its registers; wider ones take the reference."""


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation; arguments and result as `reference.rms_norm`."""
    if runs_on_triton(x_TD, weight_D) and x_TD.shape[-1] <= MAX_WIDTH:
        from storyteller_kernels.rms_norm import autograd

        return autograd.rms_norm(x_TD, weight_D, eps)
    return reference.rms_norm(x_TD, weight_D, eps)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, normalised, and the sum; arguments and result as `reference.add_rms_norm`."""
    suits = x_TD.shape == residual_TD.shape and x_TD.shape[-1] <= MAX_WIDTH
    if runs_on_triton(x_TD, residual_TD, weight_D) and suits:
        from storyteller_kernels.rms_norm import autograd

        return autograd.add_rms_norm(x_TD, residual_TD, weight_D, eps)
    return reference.add_rms_norm(x_TD, residual_TD, weight_D, eps)


__all__ = ["MAX_WIDTH", "add_rms_norm", "rms_norm"]
