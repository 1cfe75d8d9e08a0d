"""y = x / sqrt(mean(x^2) + eps) * weight, the mean over the last dimension."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalization (Zhang and Sennrich 2019, eq. 4).

    Args:
        x_TD: [..., D], any floating dtype; the statistics are computed in fp32.
        weight_D: [D], gain.
        eps: added to the mean square.

    Returns:
        [..., D] in the dtype of `x_TD`.
    """
    if x_TD.dtype == torch.float32:
        return F.rms_norm(x_TD, (x_TD.shape[-1],), weight_D.float(), eps)
    normal_TD = F.rms_norm(x_TD.float(), (x_TD.shape[-1],), eps=eps).to(x_TD.dtype)
    return normal_TD * weight_D.to(x_TD.dtype)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a layer's output to the residual stream, and normalize the sum for the next layer.

    Args:
        x_TD: [..., D], the layer's output.
        residual_TD: [..., D], the stream; if the dtypes differ, the sum has the wider one.
        weight_D: [D], gain.
        eps: added to the mean square.

    Returns:
        The normalized sum and the sum, both [..., D] in the dtype of the sum.
    """
    sum_TD = x_TD + residual_TD
    return rms_norm(sum_TD, weight_D, eps), sum_TD
