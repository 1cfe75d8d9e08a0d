"""Root-mean-square normalisation, alone or with the addition to the residual stream before it."""

import torch
from torch import Tensor

from storyteller_kernels.dispatch import runs_on_triton
from storyteller_kernels.rms_norm import operators, reference

MAX_WIDTH = 8192
"""Widest row that a Triton program holds in its registers; wider ones take the reference."""


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation; arguments and result as `reference.rms_norm`."""
    if _has_kernel(x_TD, weight_D):
        return operators.rms_norm(x_TD, weight_D, eps)
    return reference.rms_norm(x_TD, weight_D, eps)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, normalised, and the sum; arguments and result as `reference.add_rms_norm`."""
    if x_TD.shape == residual_TD.shape and _has_kernel(x_TD, residual_TD, weight_D):
        return operators.add_rms_norm(x_TD, residual_TD, weight_D, eps)
    return reference.add_rms_norm(x_TD, residual_TD, weight_D, eps)


def _has_kernel(x_TD: Tensor, *others: Tensor) -> bool:
    """Not where torch.compile looks: it fuses the definition with what stands before and behind it."""
    return not torch.compiler.is_compiling() and x_TD.shape[-1] <= MAX_WIDTH and runs_on_triton(x_TD, *others)


__all__ = ["MAX_WIDTH", "add_rms_norm", "rms_norm"]
