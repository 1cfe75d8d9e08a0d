"""What stories are compared by: their words without case and punctuation, and the sequences of WORDS of them."""

import hashlib
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

WORDS = 3
"""Words in a shingle: with three, a change of one word spoils three shingles, not five."""
_MOST_REMEMBERED = 1 << 20
"""Number of word hashes that a process keeps."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_ASCII = str.maketrans({chr(i): " " for i in range(128) if not (chr(i).isalnum() or chr(i) in "_'")} | {"'": None})
_APOSTROPHES = str.maketrans(dict.fromkeys("'’"))
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, in order; an apostrophe is not part of a word and does not end one."""
    if text.isascii():  # the same result, and much faster
        return text.lower().translate(_ASCII).split()
    return _WORD.findall(text.casefold().translate(_APOSTROPHES))


def digest_of(words: Sequence[str]) -> bytes:
    """sha256 of the words: the same for stories that differ only in case, punctuation and white space."""
    return hashlib.sha256(" ".join(words).encode(errors="surrogatepass")).digest()


def shingles_of(stories: Sequence[Sequence[str]]) -> list[NDArray[np.uint32]]:
    """Sorted, distinct hashes of the sequences of WORDS words of each story.

    Args:
        stories: the words of each; if one has fewer than WORDS, all of its words are one sequence.
    """
    lengths = np.array([*map(len, stories)], dtype=np.int64)
    count = int(lengths.sum())
    hashes = np.fromiter(map(_word_hashes.__getitem__, chain.from_iterable(stories)), dtype=np.uint64, count=count)
    ends = np.repeat(np.cumsum(lengths), lengths)
    place = np.arange(count)
    mixed = np.zeros(count, dtype=np.uint64)
    for i in range(WORDS):
        # Zeros beyond the end of a story, which only matter if it is shorter than a sequence.
        following = np.where(place + i < ends, hashes[np.minimum(place + i, count - 1)], np.uint64(0))
        mixed = (mixed + following) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    mixed *= _MIXER
    # One sort for all stories: the number of the story in the upper bits, the hash in the lower ones.
    owner = np.repeat(np.arange(len(stories), dtype=np.uint64), lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    is_whole = (place + WORDS <= ends) | (place == starts) & (ends - starts < WORDS)
    keys = np.sort((owner << np.uint64(32) | mixed >> np.uint64(32))[is_whole])
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    cuts = np.searchsorted(keys, np.arange(1, len(stories), dtype=np.uint64) << np.uint64(32))
    return np.split(keys.astype(np.uint32), cuts)


def jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Size of the intersection of two sets divided by that of their union."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


class _WordHashes(dict[str, int]):
    """Hashes of words, each computed once: most words of a story have occurred before."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_REMEMBERED:
            self.clear()
        digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


_word_hashes = _WordHashes()
