"""Normalization layers, optionally with the residual addition that precedes them."""

import torch
from storyteller_kernels import add_rms_norm, rms_norm
from torch import Tensor, nn
from torch.nn import functional as F

from storyteller_ds.config.model import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalization with a gain, over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """[..., D] to [..., D]; with `residual`, the normalized sum of both, and the sum."""
        weight = self.weight.to(x.dtype)
        if residual is None:
            return rms_norm(x, weight, self.eps)
        return add_rms_norm(x, residual, weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm with the interface of RMSNorm."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """[..., D] to [..., D]; with `residual`, the normalized sum of both, and the sum."""
        total = x if residual is None else x + residual
        bias = None if self.bias is None else self.bias.to(x.dtype)
        normal = F.layer_norm(total, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)
        return normal if residual is None else (normal, total)


def build_norm(config: ModelConfig) -> nn.Module:
    """The normalization that the config asks for, over hidden_size."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)
