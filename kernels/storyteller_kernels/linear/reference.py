"""y = x W^T + b in plain torch."""

from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight_HD: Tensor, bias_H: Tensor | None = None) -> Tensor:
    """A dense layer.

    Args:
        x: [..., D].
        weight_HD: [H, D].
        bias_H: [H] or None.

    Returns:
        [..., H], in the dtype of x, or of autocast.
    """
    return F.linear(x, weight_HD, bias_H)
