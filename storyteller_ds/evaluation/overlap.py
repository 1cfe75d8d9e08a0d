"""How much of a story occurs word for word in the training text."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.shards import TokenStream

_CHUNK = 1 << 20
"""Training tokens that are searched at a time."""
_BASE = 0xD1342543DE82EF95
"""Odd, so that it has an inverse modulo 2^64."""
_INVERSE = pow(_BASE, -1, 1 << 64)
_FILTER_BITS = 20
_Hashes = NDArray[np.uint64]


class Passage(NamedTuple):
    """A part of a story that also occurs in the training text."""

    start: int
    """Its first token, counted from 0."""
    length: int
    """In tokens; 0: there is none."""


class TrainingText:
    """Looks for passages in a training text, using memory that does not grow with it.

    A window of L tokens is identified by a 64-bit hash, a polynomial in random numbers drawn for each token id (Rabin
    and Karp). Two different windows have the same hash with a probability of about 2^-60, so with 10^9 training tokens
    and 10^4 story tokens expect one false match in about a hundred thousand evaluations.

    Args:
        stream: the training tokens.
        vocab_size: all ids are below it.
    """

    def __init__(self, stream: TokenStream, vocab_size: int) -> None:
        self._stream = stream
        self._number_V = np.random.default_rng(0).integers(0, 1 << 64, vocab_size, dtype=np.uint64)

    def has(self, stories: Sequence[Sequence[int]], length: int) -> list[NDArray[np.bool_]]:
        """For each story, whether each of its windows of `length` tokens occurs in the training text.

        A story shorter than that has no windows.
        """
        wanted = [self._windows(np.asarray(story, np.int64), length) for story in stories]
        found = self._found({length: np.concatenate(wanted)})[length] if stories else np.empty(0, np.uint64)
        return [np.isin(each, found) for each in wanted]

    def longest(self, stories: Sequence[Sequence[int]], progress: Callable[[str], object]) -> list[Passage]:
        """The longest passage of each story that occurs in the training text.

        If none of some length occurs, no longer one does. This allows a binary search, run for all stories at once.

        Args:
            stories: the token ids of each.
            progress: receives a message before each pass over the training text.
        """
        ids = [np.asarray(story, np.int64) for story in stories]
        best = [Passage(0, 0) for _ in ids]
        beyond = [len(each) + 1 for each in ids]
        passes = 0
        while going := [i for i in range(len(ids)) if beyond[i] - best[i].length > 1]:
            passes += 1
            progress(f"pass {passes} over the training text, {len(going)} stories")
            middle = {i: (best[i].length + beyond[i]) // 2 for i in going}
            windows = {i: self._windows(ids[i], middle[i]) for i in going}
            found = self._found(
                {
                    length: np.concatenate([windows[i] for i in going if middle[i] == length])
                    for length in set(middle.values())
                }
            )
            for i in going:
                hits = np.flatnonzero(np.isin(windows[i], found[middle[i]]))
                if len(hits):
                    best[i] = Passage(int(hits[0]), middle[i])
                else:
                    beyond[i] = middle[i]
        return best

    def _found(self, wanted: Mapping[int, _Hashes]) -> dict[int, _Hashes]:
        """The hashes, for each window length, that occur in the training text."""
        searches = {length: _Search(np.unique(hashes)) for length, hashes in wanted.items()}
        for start in range(0, len(self._stream), _CHUNK):
            # A window may begin in one chunk and end in the next.
            ids = self._stream.read(start, start + _CHUNK + max(wanted) - 1)
            sums, power = self._sums(ids)
            for length, search in searches.items():
                windows = max(0, min(_CHUNK, len(ids) - length + 1))
                search.look_at((sums[length : length + windows] - sums[:windows]) * power[:windows])
        return {length: search.found for length, search in searches.items()}

    def _windows(self, ids: NDArray[np.int64], length: int) -> _Hashes:
        sums, power = self._sums(ids)
        windows = max(0, len(ids) - length + 1)
        return (sums[length : length + windows] - sums[:windows]) * power[:windows]

    def _sums(self, ids: NDArray[np.int64]) -> tuple[_Hashes, _Hashes]:
        """[tokens + 1] sums of number * base^i over all previous tokens, and [tokens] base^-i; all modulo 2^64."""
        sums = np.zeros(len(ids) + 1, np.uint64)
        np.cumsum(self._number_V[ids] * _powers(_BASE, len(ids)), out=sums[1:])
        return sums, _powers(_INVERSE, len(ids))


class _Search:
    """Hashes to look for, and which of them have been found."""

    def __init__(self, wanted: _Hashes) -> None:
        self._wanted, self._seen = wanted, np.zeros(len(wanted), np.bool_)
        # A lookup in a small table rules out most windows.
        self._may_be = np.zeros(1 << _FILTER_BITS, np.bool_)
        self._may_be[wanted >> np.uint64(64 - _FILTER_BITS)] = True

    @property
    def found(self) -> _Hashes:
        return self._wanted[self._seen]

    def look_at(self, hashes: _Hashes) -> None:
        if not len(self._wanted):
            return
        likely = hashes[self._may_be[hashes >> np.uint64(64 - _FILTER_BITS)]]
        place = np.minimum(np.searchsorted(self._wanted, likely), len(self._wanted) - 1)
        self._seen[place[self._wanted[place] == likely]] = True


def _powers(base: int, number: int) -> _Hashes:
    """[number] base^0, base^1 ... modulo 2^64, computed by repeated doubling."""
    powers = np.ones(max(1, number), np.uint64)
    done = 1
    while done < number:
        step = min(done, number - done)
        powers[done : done + step] = powers[:step] * np.uint64(pow(base, done, 1 << 64))
        done += step
    return powers[:number]
