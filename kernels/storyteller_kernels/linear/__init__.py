"""A dense layer: all products with weights except those of the experts, which have their own operation."""

import torch
from torch import Tensor

from storyteller_kernels.dispatch import runs_on_cpu
from storyteller_kernels.linear import autograd, reference


def linear(x: Tensor, weight_HD: Tensor, bias_H: Tensor | None = None) -> Tensor:
    """x W^T + b; arguments and result as in `reference.linear`."""
    # torch.compile chooses its own library, and fuses the operations after the product.
    if not torch.compiler.is_compiling() and runs_on_cpu(x, weight_HD):
        return autograd.linear(x, weight_HD, bias_H)
    return reference.linear(x, weight_HD, bias_H)


__all__ = ["linear"]
