"""Dense layers and embeddings. Weights are cast to the format of what they are multiplied with (docs/precision.md).

They are made without initial weights, which init.py or a checkpoint gives them: torch's own would cost time, a second
of it for the compiler that torch loads to fill tensors on the meta device.
"""

from storyteller_kernels import linear
from torch import Tensor, nn


class Linear(nn.Linear):
    """torch's layer, with the product of storyteller_kernels."""

    def reset_parameters(self) -> None:
        """Nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Embedding(nn.Embedding):
    """torch's layer."""

    def reset_parameters(self) -> None:
        """Nothing."""
