"""Root-mean-square normalization, optionally with the residual addition that precedes it."""

import torch
from torch import Tensor

from storyteller_kernels.dispatch import runs_on_triton
from storyteller_kernels.rms_norm import operators, reference

MAX_WIDTH = 8192
"""Widest row that a Triton program holds in its registers; for wider ones, the reference is used."""


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalization; arguments and result as in `reference.rms_norm`."""
    if _has_kernel(x_TD, weight_D):
        return operators.rms_norm(x_TD, weight_D, eps)
    return reference.rms_norm(x_TD, weight_D, eps)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalized sum, and the sum; arguments and result as in `reference.add_rms_norm`."""
    if x_TD.shape == residual_TD.shape and _has_kernel(x_TD, residual_TD, weight_D):
        return operators.add_rms_norm(x_TD, residual_TD, weight_D, eps)
    return reference.add_rms_norm(x_TD, residual_TD, weight_D, eps)


def _has_kernel(x_TD: Tensor, *others: Tensor) -> bool:
    """Whether to use Triton; not under torch.compile, which fuses the definition with the operations around it."""
    return not torch.compiler.is_compiling() and x_TD.shape[-1] <= MAX_WIDTH and runs_on_triton(x_TD, *others)


__all__ = ["MAX_WIDTH", "add_rms_norm", "rms_norm"]
