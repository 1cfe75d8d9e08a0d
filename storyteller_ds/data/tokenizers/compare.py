"""Several tokenizers on one text: how short it becomes, how fast, and which tokens are never or hardly used."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.tokenizers.pieces import Piece, kind_of, pieces, unreachable
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer

PASSES = 3
"""Over the text; the fastest counts, which other work on the machine has disturbed least."""


@dataclass(frozen=True)
class Measured:
    """A tokenizer on a text."""

    name: str
    kind: str
    vocab_size: int
    characters: int
    bytes: int
    tokens: int
    unknown: int
    """Tokens that stand for what it does not know."""
    seconds: float
    """To encode the text, on all cores."""
    counts_V: NDArray[np.int64]
    """[vocab_size] how often each token is used."""
    unused: list[Piece]
    """Never used; special tokens are left out, here and below."""
    rare: list[Piece]
    """Used, but less often than was asked."""
    unreachable: list[Piece]
    """See pieces.unreachable."""

    @property
    def characters_per_token(self) -> float:
        """Of the text."""
        return self.characters / self.tokens

    @property
    def bytes_per_token(self) -> float:
        """Of the text, in UTF-8."""
        return self.bytes / self.tokens

    @property
    def mb_per_s(self) -> float:
        """Encoding speed (10^6 bytes a second)."""
        return self.bytes / 1e6 / self.seconds

    @property
    def frequency_bpb(self) -> float:
        """Bits per byte of a model that knows nothing but how frequent each token is: the entropy of the counts."""
        used = self.counts_V[self.counts_V > 0]
        return float(-(used * np.log2(used / self.tokens)).sum() / self.bytes)


def measure(name: str, tokenizer: Tokenizer, texts: Sequence[str], rare_below: int) -> Measured:
    """Measure a tokenizer.

    Args:
        name: of the row.
        tokenizer: it.
        texts: the documents, one character or more in all.
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
