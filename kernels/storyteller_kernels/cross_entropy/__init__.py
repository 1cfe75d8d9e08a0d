"""The loss over the vocabulary, from the last hidden state and the output embedding."""

from storyteller_kernels.cross_entropy.autograd import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
