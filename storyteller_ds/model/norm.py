"""Normalisation layers, alone or with the addition to the residual stream before them."""

import torch
from storyteller_kernels import add_rms_norm, rms_norm
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a gain, over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """[..., D] to [..., D]; with `residual` the normalised sum of both, and the sum."""
        if residual is None:
            return rms_norm(x, self.weight, self.eps)
        return add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """torch's, with the interface of RMSNorm."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """[..., D] to [..., D]; with `residual` the normalised sum of both, and the sum."""
        if residual is None:
            return super().forward(x)
        total = x + residual
        return super().forward(total), total


def build_norm(config: ModelConfig) -> nn.Module:
    """The normalisation that the config asks for, over hidden_size."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)
