"""What computes the logits of texts that grow."""

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor

CACHED_AT_FIRST = 256
"""Positions that a cache has room for before it grows: a context may be far longer than any story (tokens)."""


class Texts(Protocol):
    """Gives the logits of the next tokens of several texts, of any lengths, one token of each after the other."""

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """[B, V] behind prompts of at least one id each; valid until the next call.

        Args:
            prompts: ids.
            room: positions that a text will have at most.
        """

    def step(self, ids: Sequence[int]) -> Tensor:
        """[B, V] behind another id of each."""

    def keep(self, texts: Sequence[int]) -> None:
        """Forget all texts but these, by their places in the batch as it is."""


class Stepper(Protocol):
    """Gives the logits of the next token, one token after the other, for one text at a time."""

    def begin(self, prompt: Sequence[int], length: int) -> Tensor:
        """[V] behind a prompt of at least one id; valid until the next call. At most `length` positions will be."""

    def step(self, token: int) -> Tensor:
        """[V] behind another token."""

    def another(self) -> Self:
        """The same for another text at the same time, in another thread."""

    def texts(self) -> Texts:
        """For several texts at the same time."""
