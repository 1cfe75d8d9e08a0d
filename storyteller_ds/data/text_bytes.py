"""UTF-8 bytes of the original text that a part of a token stream stands for: the denominator of bits per byte.

These are the bytes of the text as it was read, whatever the tokenizer, so that two tokenizers share one denominator.
If a tokenizer drops or replaces characters (a normalizer, unknown tokens), the model need not predict them but they
still count, which makes its bits per byte slightly too good; the index of the corpus has the number of unknown tokens.
A separator between documents stands for no bytes.
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
    """The tokens, if each always stands for the same bytes (Tokenizer.spells_bytes); else the bytes of each token, as
    counted by aligned_bytes when the text was tokenized."""
    token_bytes: NDArray[np.int64] | None = None
    """[V] bytes of each token; None: the stream holds the byte counts."""

    def of_each(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of text of each of the tokens at these places of the stream."""
        values = self.stream.take(places)
        return values if self.token_bytes is None else self.token_bytes[values]

    def at(self, places: NDArray[np.int64]) -> int:
        """Total bytes of text of the tokens at these places."""
        return int(self.of_each(places).sum())


def aligned_bytes(text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """[len(spans) + 1] UTF-8 bytes of the text that each token of a document stands for, adding up to the whole text.

    A token stands for the text from the end of the previous token to its own end, which includes white space that was
    dropped before it. The last entry is the text after the last token, which belongs to the separator.

    Args:
        text: the document.
        spans: where each token begins and ends (characters of the text).
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    bytes_before = np.zeros(len(codes) + 1, dtype=np.int64)
    np.cumsum(1 + (codes >= 1 << 7) + (codes >= 1 << 11) + (codes >= 1 << 16), out=bytes_before[1:])
    ends = [0, *(min(end, len(codes)) for _, end in spans), len(codes)]
    # Some tokens have no place in the text, such as a space that was put before it; they stand for no bytes.
    return np.diff(bytes_before[np.maximum.accumulate(ends)])
