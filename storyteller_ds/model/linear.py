"""Dense layers."""

from storyteller_kernels import linear
from torch import Tensor, nn


class Linear(nn.Linear):
    """torch's layer, with the product of storyteller_kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias)
