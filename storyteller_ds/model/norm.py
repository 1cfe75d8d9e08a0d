"""Normalisation layers."""

import torch
from storyteller_kernels import rms_norm
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a gain, over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return rms_norm(x, self.weight, self.eps)


def build_norm(config: ModelConfig) -> nn.Module:
    """The normalisation that the config asks for, over hidden_size."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)
