"""The loss of a language model from whole logits."""

import torch
from torch import Tensor
from torch.nn import functional as F


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits softly capped at softcap, c tanh(logits / c) (Gemma 2, 2408.00118, sec. 2); None: unchanged."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, ignore_index: int = -100, softcap: float | None = None
) -> Tensor:
    """Sum of -log softmax(W x)[target] over all targets that are not ignored, in nats.

    Args:
        x_TD: [T, D].
        weight_VD: [V, D], the output embedding.
        target_T: [T] int64; `ignore_index`, or in [0, V).
        ignore_index: targets of this value do not count.
        softcap: see `capped`.

    Returns:
        [] fp32 (fp64 for fp64 logits). The logits have the dtype of the matrix product; the rest is at least fp32.
    """
    logits_TV = F.linear(x_TD, weight_VD)
    if logits_TV.itemsize < 4:
        logits_TV = logits_TV.float()
    return F.cross_entropy(capped(logits_TV, softcap), target_T, ignore_index=ignore_index, reduction="sum")
