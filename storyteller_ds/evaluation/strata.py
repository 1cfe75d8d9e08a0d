"""Where in a text a model does well and where it does not: by position, by rarity, by length."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.shards import TokenStream

POSITIONS = (0, 100, 300, 1000, 3000)
"""Where the parts of a story begin (bytes from its beginning)."""
RARITIES = (0.0, 0.5, 0.8, 0.95, 0.99, 1.0)
"""Bounds of the strata of tokens: the fraction of the training text that all commoner tokens make up."""
_AT_ONCE = 1 << 24


class Stratum(NamedTuple):
    """A part of the text."""

    name: str
    value: float | None
    """Bits per byte or nats per token; None if the stratum is empty."""
    number: int
    """How many tokens (by length: stories) it has."""


def by_position(nll_T: NDArray[np.float64], bytes_T: NDArray[np.int64], story_T: NDArray[np.int64]) -> list[Stratum]:
    """Bits per byte by how many bytes of the story came before a token.

    In bytes, not tokens, so that positions mean the same for different tokenizers.

    Args:
        nll_T: negative log-likelihood of each predicted token (nats).
        bytes_T: UTF-8 bytes of each.
        story_T: which story each belongs to, counted from 0.
    """
    before_T = np.cumsum(bytes_T) - bytes_T
    first_of_story = np.searchsorted(story_T, np.arange(story_T[-1] + 1))
    before_T -= before_T[first_of_story][story_T]
    place = np.searchsorted(POSITIONS, before_T, side="right") - 1
    names = [f"{start}-{end}" for start, end in pairwise(POSITIONS)] + [f"{POSITIONS[-1]}-"]
    return _bits_per_byte(names, place, nll_T, bytes_T)


def by_length(nll_N: NDArray[np.float64], bytes_N: NDArray[np.int64]) -> list[Stratum]:
    """Bits per byte of each quarter of the stories, shortest to longest; empty for fewer than four stories.

    Args:
        nll_N: negative log-likelihood, summed over the tokens of each story (nats).
        bytes_N: UTF-8 bytes of each story.
    """
    if len(bytes_N) < 4:
        return []
    edges = [int(np.quantile(bytes_N, part)) for part in (0.25, 0.5, 0.75)]
    names = [f"<={edges[0]}", *(f"{low + 1}-{high}" for low, high in pairwise(edges))]
    return _bits_per_byte([*names, f">{edges[-1]}"], np.searchsorted(edges, bytes_N), nll_N, bytes_N)


def by_rarity(
    nll_T: NDArray[np.float64], token_T: NDArray[np.int64], training_count_V: NDArray[np.int64]
) -> list[Stratum]:
    """Nats per token by rarity, from the commonest tokens, which make up half of the training text, to the rarest.

    Args:
        nll_T: negative log-likelihood of each predicted token (nats).
        token_T: its id.
        training_count_V: how often each id occurs in the training text.
    """
    order = np.argsort(-training_count_V, kind="stable")
    share = np.cumsum(training_count_V[order]) / max(1, training_count_V.sum())
    part_V = np.empty(len(order), np.int64)
    # A token belongs to the stratum in which its share begins; one that never occurs belongs to the rarest.
    begins = share - training_count_V[order] / max(1, training_count_V.sum())
    part_V[order] = np.clip(np.searchsorted(RARITIES, begins + 1e-12, side="right") - 1, 0, len(RARITIES) - 2)
    part_V[training_count_V == 0] = len(RARITIES) - 2
    part_T = part_V[token_T]
    parts = range(len(RARITIES) - 1)
    names = [f"{100 * RARITIES[i]:g}-{100 * RARITIES[i + 1]:g} %" for i in parts]
    count, total = np.bincount(part_T, minlength=len(parts)), np.bincount(part_T, weights=nll_T, minlength=len(parts))
    return [
        Stratum(name, float(total[i] / count[i]) if count[i] else None, int(count[i])) for i, name in enumerate(names)
    ]


def token_counts(stream: TokenStream, vocab_size: int) -> NDArray[np.int64]:
    """[V] How often each id occurs."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(stream), _AT_ONCE):
        counts += np.bincount(stream.read(start, start + _AT_ONCE), minlength=vocab_size)
    return counts


def _bits_per_byte(
    names: list[str], place: NDArray[np.int64], nll: NDArray[np.float64], size: NDArray[np.int64]
) -> list[Stratum]:
    nats = np.bincount(place, weights=nll, minlength=len(names))
    sizes = np.bincount(place, weights=size, minlength=len(names))
    count = np.bincount(place, minlength=len(names))
    return [
        Stratum(name, float(nats[i] / math.log(2) / sizes[i]) if sizes[i] else None, int(count[i]))
        for i, name in enumerate(names)
    ]
