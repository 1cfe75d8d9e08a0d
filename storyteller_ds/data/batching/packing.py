"""Which tokens of a stream each training sequence holds.

A stream is a separator, then each document with one behind it. The input tokens of a document are the separator
before it and its own; the target of each is the token after it. So every token of the stream but the first is a
target, and of exactly one sequence, whatever the packing.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PADDING = -1
"""Place of a position that holds no token."""


class Packing(Protocol):
    """The sequences of a stream."""

    length: int
    """S (tokens)."""

    def __len__(self) -> int:
        """Number of sequences."""
        ...

    def places(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B] numbers of sequences to [B, S]: the place in the stream of each input token, or PADDING at the end."""
        ...


class CutStream:
    """The stream is cut every S tokens, also within documents.

    Args:
        tokens: of the stream.
        length: S (tokens).
        keeps_rest: whether what is left at the end is a sequence too.
    """

    def __init__(self, tokens: int, length: int, keeps_rest: bool) -> None:
        self._inputs, self.length = tokens - 1, length
        self._sequences = -(-self._inputs // length) if keeps_rest else self._inputs // length

    def __len__(self) -> int:
        return self._sequences

    def places(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """See Packing."""
        places = sequences[:, None] * self.length + np.arange(self.length)
        return np.where(places < self._inputs, places, PADDING)


class WholeDocuments:
    """Documents are only cut where they are longer than a sequence, and then into pieces of S tokens and a rest.

    The sequences are in the order of the first document in each, and so are the documents in a sequence.

    Args:
        separators: [documents + 1] their places in the stream.
        length: S (tokens).
        shared: whether several pieces may share a sequence: each is put where the least room is left, the longest
            first (best-fit packing, Ding et al. 2024, 2404.10830). Otherwise each has a sequence of its own.
    """

    def __init__(self, separators: NDArray[np.int64], length: int, shared: bool) -> None:
        starts, sizes = _pieces(separators, length)
        sequence = best_fit(sizes, length) if shared else np.arange(len(sizes))
        # Numbered by their first piece: a part of them, such as the first, is then a fair sample of the documents.
        _, first, number = np.unique(sequence, return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        order = np.argsort(rank[number], kind="stable")
        self.length, self._starts, self._sizes = length, starts[order], sizes[order]
        self._first_piece = np.concatenate([[0], np.cumsum(np.bincount(rank[number]))])

    def __len__(self) -> int:
        return len(self._first_piece) - 1

    def places(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """See Packing."""
        begin, end = self._first_piece[sequences], self._first_piece[sequences + 1]
        pieces = ranges(begin, end - begin)
        sizes = self._sizes[pieces]
        sequence = np.repeat(np.arange(len(sequences)), end - begin)
        used = np.bincount(sequence, weights=sizes, minlength=len(sequences))
        places = np.full((len(sequences), self.length), PADDING)
        places[np.arange(self.length) < used[:, None]] = ranges(self._starts[pieces], sizes)
        return places


def _pieces(separators: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the pieces of documents begin, and their sizes: pieces of `length`, and the rest of each document."""
    sizes = np.diff(separators)
    counts = -(-sizes // length)
    within = length * ranges(np.zeros_like(counts), counts)
    return np.repeat(separators[:-1], counts) + within, np.minimum(np.repeat(sizes, counts) - within, length)


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers starts[0], starts[0] + 1, …, sizes[0] of them, then those from starts[1] on, and so forth."""
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def best_fit(sizes: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The bin of each item, by best-fit decreasing: the longest first, each where the least room is left.

    Args:
        sizes: [items] from 1 to capacity.
        capacity: of a bin.
    """
    bins = np.empty(len(sizes), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit r is set where a bin has room for r: the next larger one is found without a search.
    rooms, count = 0, 0
    order = np.argsort(-sizes, kind="stable")
    for item, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, count
            count += 1
        bins[item] = chosen
        with_room[room - size].append(chosen)
        rooms |= 1 << (room - size)
    return bins
