"""Which tokens of a stream each training sequence holds.

A stream is a separator, then each document followed by one. The input tokens of a document are the separator before it
and its own tokens; the target of each is the next token. So, whatever the packing, every token of the stream but the
first is a target in exactly one sequence, except in a rest that CutStream drops.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PADDING = -1
"""Place of a position that holds no token."""


class Packing(Protocol):
    """How a stream is divided into sequences."""

    length: int
    """S (tokens)."""

    def __len__(self) -> int:
        """Number of sequences."""
        ...

    def places(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map [B] sequence numbers to [B, S]: each input token's place in the stream, or PADDING at the end."""
        ...


class CutStream:
    """Cuts the stream every S tokens, even within documents.

    Args:
        tokens: number of tokens in the stream.
        length: S (tokens).
        keeps_rest: whether the rest at the end becomes a sequence too.
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
    """Cuts only documents that are longer than a sequence, into pieces of S tokens and a rest.

    Sequences are ordered by the first document in each; the documents in a sequence are in order, too.

    Args:
        separators: [documents + 1] places of the separators in the stream.
        length: S (tokens).
        shared: whether several pieces may share a sequence: longest first, each is put where it fits with the least
            room left (best-fit packing, Ding et al. 2024, 2404.10830). Otherwise each has a sequence of its own.
    """

    def __init__(self, separators: NDArray[np.int64], length: int, shared: bool) -> None:
        starts, sizes = _pieces(separators, length)
        sequence = best_fit(sizes, length) if shared else np.arange(len(sizes))
        # Numbered by their first piece, so that a part of them, such as the first, is a fair sample of the documents.
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
    """Starts and sizes of the pieces of documents: pieces of `length`, and the rest of each document."""
    sizes = np.diff(separators)
    counts = -(-sizes // length)
    within = length * ranges(np.zeros_like(counts), counts)
    return np.repeat(separators[:-1], counts) + within, np.minimum(np.repeat(sizes, counts) - within, length)


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sizes[0] numbers from starts[0] on, then the sizes[1] numbers from starts[1] on, and so on."""
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def best_fit(sizes: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The bin of each item, by best-fit decreasing: longest first, each where it fits with the least room left.

    Args:
        sizes: [items] from 1 to capacity.
        capacity: capacity of a bin.
    """
    bins = np.empty(len(sizes), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit r is set if some bin has room r left, so the bin with the next larger room is found without a search.
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
