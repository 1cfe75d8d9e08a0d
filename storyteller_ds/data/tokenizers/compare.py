"""Compares tokenizers on one text: how short it becomes, how fast, and which tokens are never or rarely used."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.tokenizers.pieces import Piece, kind_of, pieces, unreachable
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer

PASSES = 3
"""Passes over the text; the fastest one counts, as the one least disturbed by other work on the machine."""


@dataclass(frozen=True)
class Measured:
    """Measurements of a tokenizer on a text."""

    name: str
    kind: str
    vocab_size: int
    characters: int
    bytes: int
    tokens: int
    unknown: int
    """Number of tokens that stand for text unknown to the tokenizer."""
    seconds: float
    """Time to encode the text on all cores."""
    counts_V: NDArray[np.int64]
    """[vocab_size] how often each token is used."""
    unused: list[Piece]
    """Tokens that are never used; special tokens are left out, here and below."""
    rare: list[Piece]
    """Tokens that are used, but less often than `rare_below`."""
    unreachable: list[Piece]
    """See pieces.unreachable."""

    @property
    def characters_per_token(self) -> float:
        """Characters of the text per token."""
        return self.characters / self.tokens

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the text per token."""
        return self.bytes / self.tokens

    @property
    def mb_per_s(self) -> float:
        """Encoding speed (10^6 bytes per second)."""
        return self.bytes / 1e6 / self.seconds

    @property
    def frequency_bpb(self) -> float:
        """Bits per byte of a model that knows only how frequent each token is: the entropy of the counts."""
        used = self.counts_V[self.counts_V > 0]
        return float(-(used * np.log2(used / self.tokens)).sum() / self.bytes)


def measure(name: str, tokenizer: Tokenizer, texts: Sequence[str], rare_below: int) -> Measured:
    """Measure a tokenizer.

    Args:
        name: name of its row in the comparison.
        tokenizer: the tokenizer to measure.
        texts: the documents, with at least one character in total.
        rare_below: a token that is used less often is rare.
    """
    seconds = float("inf")
    for _ in range(PASSES):
        start = time.perf_counter()
        encoded = tokenizer.encode_batch(texts)
        seconds = min(seconds, time.perf_counter() - start)
    ids = np.concatenate([np.array(each, dtype=np.int64) for each in encoded])
    counts_V = np.bincount(ids, minlength=tokenizer.vocab_size)
    contents = pieces(tokenizer).items()
    return Measured(
        name,
        kind_of(tokenizer),
        tokenizer.vocab_size,
        sum(map(len, texts)),
        sum(len(text.encode()) for text in texts),
        len(ids),
        0 if tokenizer.unknown is None else int(counts_V[tokenizer.unknown]),
        seconds,
        counts_V,
        [Piece(i, content) for i, content in contents if counts_V[i] == 0],
        [Piece(i, content) for i, content in contents if 0 < counts_V[i] < rare_below],
        unreachable(tokenizer),
    )
