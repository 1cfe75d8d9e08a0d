"""Data movement: tokens to expert order and back."""

from storyteller_kernels.permute.reference import combine, permute

__all__ = ["combine", "permute"]
