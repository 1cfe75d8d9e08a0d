"""The individual stories in a stream of token ids, and statistics of all of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.shards import TokenStream
from storyteller_ds.errors import DataError

_AT_ONCE = 1 << 24
"""Ids that are read at once."""


class Stories:
    """The documents of a prepared split, whose ids are a separator, then each document followed by one.

    Args:
        stream: the ids.
        end_of_text: id of the separator.
    """

    def __init__(self, stream: TokenStream, end_of_text: int) -> None:
        self._stream = stream
        chunks = range(0, len(stream), _AT_ONCE)
        self.separators = np.concatenate(
            [start + np.flatnonzero(stream.read(start, start + _AT_ONCE) == end_of_text) for start in chunks]
        )
        """[stories + 1] Their places in the stream."""

    def __len__(self) -> int:
        return max(0, len(self.separators) - 1)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[stories] Tokens of each, without the separator."""
        lengths: NDArray[np.int64] = np.diff(self.separators) - 1
        return lengths

    def ids(self, number: int) -> list[int]:
        """The ids of a story by its number, counted from 1.

        Raises:
            DataError: there is no story with that number.
        """
        if not 1 <= number <= len(self):
            raise DataError(f"there is no story {number:,}; there are {len(self):,}, counted from 1")
        begin, end = self.separators[number - 1 : number + 1].tolist()
        found: list[int] = self._stream.read(begin + 1, end).tolist()
        return found


@dataclass(frozen=True)
class Statistics:
    """Statistics of a split."""

    stories: int
    bytes: int | None
    """UTF-8 bytes of the text; None: the corpus was prepared before bytes were counted."""
    tokens: int
    """Including the separators."""
    length_percentiles: dict[str, int]
    """Tokens of a story: the shortest, the 5th, 50th and 95th percentile, the longest."""
    used: int
    """Number of distinct ids that occur."""
    longer: int
    """Number of stories that are longer than a training sequence."""


def statistics_of(stream: TokenStream, end_of_text: int, text_bytes: int | None, sequence_length: int) -> Statistics:
    """Compute the statistics of a whole split."""
    lengths = Stories(stream, end_of_text).lengths
    used: set[int] = set()
    for start in range(0, len(stream), _AT_ONCE):
        used.update(np.unique(stream.read(start, start + _AT_ONCE)).tolist())
    places = {"shortest": 0, "5 %": 5, "median": 50, "95 %": 95, "longest": 100}
    return Statistics(
        len(lengths),
        text_bytes,
        len(stream),
        {name: int(np.percentile(lengths, place)) for name, place in places.items()},
        len(used),
        int((lengths > sequence_length).sum()),
    )
