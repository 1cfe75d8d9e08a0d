"""Finds stories that are the same or nearly the same, so that all but one of them can be dropped.

Exact duplicates have the same words. Near-duplicates share at least SIMILARITY of their shingles (Jaccard): MinHash
signatures (Broder 1997), cut into bands, propose pairs (locality-sensitive hashing), and the shingles decide. A story
is dropped only if it is near one that is kept, so that a chain of small changes does not remove everything.

The better of two stories comes first in the order of `ranked`, which does not depend on the order of the corpus.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.cleaning.clean import PERMUTATIONS
from storyteller_ds.data.cleaning.shingles import jaccard
from storyteller_ds.data.cleaning.spool import Spool

SIMILARITY = 0.5
"""Least share of common shingles at which two stories are nearly the same."""
ROWS = 4
"""Signature rows per band; with 64 bands, a pair at 0.5 is proposed with probability 98.4 %, at 0.6 with 99.99 %."""
_SLACK = 4 * (SIMILARITY * (1 - SIMILARITY) / PERMUTATIONS) ** 0.5
"""Four standard deviations of a signature's estimate; pairs further below the threshold are not compared."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Duplicate(NamedTuple):
    """A story to drop, and the one like it that is kept."""

    dropped: int
    kept: int
    similarity: float
    """Jaccard of the shingles; 1 for the same words."""


def ranked(spool: Spool, splits: NDArray[np.int8]) -> NDArray[np.int64]:
    """[stories] Indices, best first: of two similar stories, the one of the later split, the longer, then by hash."""
    digests = spool.digests
    index = np.arange(len(spool))
    return np.lexsort((index, digests[:, 1], digests[:, 0], -spool.characters.astype(np.int64), -splits))


def exact_duplicates(spool: Spool, order: NDArray[np.int64]) -> list[Duplicate]:
    """Stories with the same words as an earlier one in `order`."""
    digests = spool.digests[order]
    _, first, group = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    keeps = order[first[group.reshape(-1)]]
    return [Duplicate(int(i), int(kept), 1.0) for i, kept in zip(order, keeps, strict=True) if i != kept]


def near_duplicates(spool: Spool, order: NDArray[np.int64]) -> list[Duplicate]:
    """Stories that are near an earlier one in `order` that is kept.

    Args:
        spool: the stories.
        order: the ones to compare, best first.
    """
    found: list[Duplicate] = []
    shared = _shared_buckets(spool, order)
    stay: dict[int, list[int]] = {}
    for index in order.tolist():
        buckets = shared.of(index)
        candidates = sorted({other for bucket in buckets for other in stay.get(bucket, ())})
        best = _nearest(spool, index, candidates)
        if best is not None:
            found.append(best)
        else:
            for bucket in buckets:
                stay.setdefault(bucket, []).append(index)
    return found


def _nearest(spool: Spool, index: int, candidates: Sequence[int]) -> Duplicate | None:
    if not candidates:
        return None
    estimates = (spool.signatures(candidates) == spool.signatures([index])).mean(axis=1)
    likely = [other for other, each in zip(candidates, estimates, strict=True) if each >= SIMILARITY - _SLACK]
    pairs = [Duplicate(index, other, jaccard(spool.shingles(index), spool.shingles(other))) for other in likely]
    return max(
        (pair for pair in pairs if pair.similarity >= SIMILARITY), key=lambda pair: pair.similarity, default=None
    )


def _shared_buckets(spool: Spool, order: NDArray[np.int64]) -> "Buckets":
    """The buckets that hold more than one of the stories."""
    stories, buckets, first = [], [], 0
    for start in range(0, PERMUTATIONS, ROWS):
        hashes = np.zeros(len(order), dtype=np.uint64)
        for column in spool.band(slice(start, start + ROWS))[order].T:
            hashes = (hashes + column) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(32)
        _, bucket, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
        shared = sizes[bucket] > 1
        stories.append(order[shared])
        buckets.append(bucket[shared] + first)
        first += len(sizes)
    return Buckets(np.concatenate(stories), np.concatenate(buckets), len(spool))


class Buckets:
    """Which buckets a story is in.

    Args:
        stories: [pairs] indices of stories.
        buckets: [pairs] the bucket of each.
        count: number of all stories.
    """

    def __init__(self, stories: NDArray[np.int64], buckets: NDArray[np.int64], count: int) -> None:
        by_story = np.argsort(stories, kind="stable")
        self._buckets = buckets[by_story]
        self._starts = np.searchsorted(stories[by_story], np.arange(count + 1))

    def of(self, story: int) -> list[int]:
        """The numbers of a story's buckets."""
        found: list[int] = self._buckets[self._starts[story] : self._starts[story + 1]].tolist()
        return found


def without(order: NDArray[np.int64], duplicates: Sequence[Duplicate]) -> NDArray[np.int64]:
    """The stories in `order` that are not dropped."""
    dropped = np.fromiter((each.dropped for each in duplicates), dtype=np.int64, count=len(duplicates))
    return order[~np.isin(order, dropped)]
