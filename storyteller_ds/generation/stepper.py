"""Interfaces of what computes the logits of growing texts."""

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor

CACHED_AT_FIRST = 256
"""Positions that a cache has room for before it grows: a context may be far longer than any story (tokens)."""


class Texts(Protocol):
    """Computes the logits of the next tokens of several texts of any lengths, one token of each at a time."""

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """[B, V], the logits after prompts of at least one id each; valid until the next call.

        Args:
            prompts: ids.
            room: maximum number of positions of a text.
        """

    def step(self, ids: Sequence[int]) -> Tensor:
        """[B, V], the logits after another id of each text."""

    def keep(self, texts: Sequence[int]) -> None:
        """Forget all texts except these, by their indices in the current batch."""


class Stepper(Protocol):
    """Computes the logits of the next token, one token at a time, for one text at a time."""

    def begin(self, prompt: Sequence[int], length: int) -> Tensor:
        """[V], the logits after a prompt of at least one id, valid until the next call; `length`: maximum positions."""

    def step(self, token: int) -> Tensor:
        """[V], the logits after another token."""

    def another(self) -> Self:
        """A stepper for another text at the same time, in another thread."""

    def texts(self) -> Texts:
        """A Texts for several texts at the same time."""
