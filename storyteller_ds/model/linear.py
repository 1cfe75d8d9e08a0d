"""Dense layers, which cast weights to the dtype of what they multiply (docs/precision.md), and embeddings.

They are created without initial weights, which come from init.py or a checkpoint: torch's own initialization takes
time, including a second for the compiler that torch loads to fill tensors on the meta device.
"""

from storyteller_kernels import linear
from torch import Tensor, nn


class Linear(nn.Linear):
    """torch's layer with the matrix product of storyteller_kernels."""

    def reset_parameters(self) -> None:
        """Do nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Embedding(nn.Embedding):
    """torch's layer without initial weights."""

    def reset_parameters(self) -> None:
        """Do nothing."""
