"""How many UTF-8 bytes of the original text a part of a token stream stands for: what bits per byte divide by.

Always the bytes of the text as it was read, with any tokenizer: only then do two tokenizers share one
denominator. Where a tokenizer drops or replaces characters (a normalizer, unknown tokens) the model is not asked for
them but they count, so that its bits per byte are a little too good; how many tokens are unknown is in the index of
the corpus. A separator between documents stands for no byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.shards import TokenStream


@dataclass(frozen=True)
class TextBytes:
    """The bytes behind a token stream."""

    stream: TokenStream
    """The tokens, where each always stands for the same bytes (Tokenizer.spells_bytes); else the bytes of each, as
    aligned_bytes has counted them when the text became tokens."""
    token_bytes: NDArray[np.int64] | None = None
    """[V] bytes of each token; None: the stream is of bytes."""

    def of_each(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of the text of the tokens at these places of the stream."""
        values = self.stream.take(places)
        return values if self.token_bytes is None else self.token_bytes[values]

    def at(self, places: NDArray[np.int64]) -> int:
        """The sum of them."""
        return int(self.of_each(places).sum())


def aligned_bytes(text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """[len(spans) + 1] UTF-8 bytes of the text that each token of a document stands for; their sum is all of it.

    A token stands for what lies between the end of the one before and its own, so for the white space that was
    dropped before it too. What is behind the last is the separator's, the last entry.

    Args:
        text: the document.
        spans: of each token, where it begins and ends (characters of the text).
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    bytes_before = np.zeros(len(codes) + 1, dtype=np.int64)
    np.cumsum(1 + (codes >= 1 << 7) + (codes >= 1 << 11) + (codes >= 1 << 16), out=bytes_before[1:])
    ends = [0, *(min(end, len(codes)) for _, end in spans), len(codes)]
    # Some tokens have no place in the text, such as a space that was put before it; they stand for nothing.
    return np.diff(bytes_before[np.maximum.accumulate(ends)])
