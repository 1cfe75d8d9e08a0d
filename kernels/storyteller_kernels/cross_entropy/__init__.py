"""The loss over the vocabulary, from the last hidden state and the output embedding."""

from torch import Tensor

from storyteller_kernels.cross_entropy import autograd, reference
from storyteller_kernels.cross_entropy.reference import capped
from storyteller_kernels.dispatch import ASKED_FOR, backend


def linear_cross_entropy(
    x_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The summed loss without holding all logits, on any device; see `reference.linear_cross_entropy`.

    `chunk_size`: tokens per chunk; None: see `autograd.linear_cross_entropy`.
    """
    if backend() is ASKED_FOR:
        return reference.linear_cross_entropy(x_TD, weight_VD, target_T, ignore_index, softcap)
    return autograd.linear_cross_entropy(x_TD, weight_VD, target_T, ignore_index, chunk_size, softcap)


__all__ = ["capped", "linear_cross_entropy"]
