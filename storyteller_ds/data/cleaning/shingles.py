"""What a story is compared by: its words without case and punctuation, and the sequences of WORDS of them."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORDS = 3
"""In a shingle: with three, a change of one word spoils three of them, and not five."""
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MOST_REMEMBERED = 1 << 20
"""Hashes of words that a process keeps."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)


class _WordHashes(dict[str, int]):
    """Hashes of words, each computed once: most words of a story have occurred before."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_REMEMBERED:
            self.clear()
        digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


_word_hashes = _WordHashes()


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text.casefold())


def digest_of(words: Sequence[str]) -> bytes:
    """sha256 of the words: the same for stories that differ in case, punctuation and white space alone."""
    return hashlib.sha256(" ".join(words).encode()).digest()


def shingles_of(words: Sequence[str]) -> NDArray[np.uint32]:
    """[N] Hashes of the sequences of WORDS words, sorted, each once; of all words where there are fewer."""
    hashes = np.fromiter(map(_word_hashes.__getitem__, words), dtype=np.uint64, count=len(words))
    size = min(WORDS, len(hashes))
    count = len(hashes) - size + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for i in range(size):
        mixed = (mixed + hashes[i : i + count]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    mixed *= _MIXER
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Size of the intersection of two sets over that of their union."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)
