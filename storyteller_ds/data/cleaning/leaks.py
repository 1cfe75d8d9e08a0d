"""Finds stories of one split that are, or nearly are, in another, comparing every possible pair without signatures.

Two sets that share a given part of their elements have some of their rarest ones in common, if enough of the rarest are
looked at that the rest could not make up that part (prefix filtering; Bayardo et al. 2007, "Scaling up all pairs
similarity search"). So this finds what the search for duplicates may have missed, independently of it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.cleaning.duplicates import SIMILARITY, Duplicate, without
from storyteller_ds.data.cleaning.shingles import jaccard
from storyteller_ds.data.cleaning.spool import Spool

IN_COMMON = 20
"""How many of their rarest shingles two stories must share to be compared; fewer for short stories."""
_COUNTERS = 22
"""Bits of a shingle that select its counter; several shingles share one, which costs time but misses no pair."""
_AT_ONCE = 512
"""Stories whose shingles are looked up together."""


def leaks(spool: Spool, stories: NDArray[np.int64], splits: NDArray[np.int8]) -> list[Duplicate]:
    """Stories that are near one of a later split, each once.

    Args:
        spool: all stories.
        stories: the ones that are kept so far.
        splits: [all stories] index in splits.SPLITS.
    """
    counts = np.zeros(1 << _COUNTERS, dtype=np.uint32)
    for index in stories.tolist():
        counts[_counter(spool.shingles(index))] += 1
    found: list[Duplicate] = []
    later = stories[splits[stories] == splits.max()]
    for split in range(int(splits.max()) - 1, -1, -1):
        own = stories[splits[stories] == split]
        leaking = [*_near(spool, own, later, counts)]
        found += leaking
        later = np.concatenate([later, without(own, leaking)])
    return found


def _near(
    spool: Spool, stories: NDArray[np.int64], others: NDArray[np.int64], counts: NDArray[np.uint32]
) -> Iterator[Duplicate]:
    """Each of the stories that is near one of the others, with the nearest of them."""
    if len(others) == 0:
        return
    rarest = [_rarest(spool.shingles(other), counts) for other in others.tolist()]
    needed = np.array([_needed(len(spool.shingles(other))) for other in others.tolist()])
    known, owners = np.concatenate(rarest), np.repeat(np.arange(len(others)), [*map(len, rarest)])
    by_shingle = np.argsort(known, kind="stable")
    known, owners = known[by_shingle], owners[by_shingle]
    occurs = np.zeros(1 << _COUNTERS, dtype=bool)
    occurs[_counter(known)] = True
    for start in range(0, len(stories), _AT_ONCE):
        chunk = stories[start : start + _AT_ONCE].tolist()
        sets = [spool.shingles(index) for index in chunk]
        flat, of = np.concatenate(sets), np.repeat(np.arange(len(chunk)), [*map(len, sets)])
        possible = occurs[_counter(flat)]
        flat, of = flat[possible], of[possible]
        first, last = (np.searchsorted(known, flat, side=side) for side in ("left", "right"))
        sizes = last - first
        # For each shingle, all places of the index between first and last.
        places = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(first, sizes)
        pairs, shared = np.unique(np.repeat(of, sizes) * len(others) + owners[places], return_counts=True)
        own_needed = np.array([_needed(len(each)) for each in sets])
        mine, theirs = np.divmod(pairs, len(others))
        likely = shared >= np.minimum(own_needed[mine], needed[theirs])
        best: dict[int, Duplicate] = {}
        for i, j in zip(mine[likely].tolist(), others[theirs[likely]].tolist(), strict=True):
            pair = Duplicate(chunk[i], j, jaccard(sets[i], spool.shingles(j)))
            if pair.similarity >= max(SIMILARITY, best[i].similarity if i in best else 0):
                best[i] = pair
        yield from best.values()


def _rarest(shingles: NDArray[np.uint32], counts: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Enough of the rarest shingles that any set that shares SIMILARITY of all shares at least `_needed` of these."""
    length = len(shingles) - int(np.ceil(SIMILARITY * len(shingles))) + _needed(len(shingles))
    return shingles[np.lexsort((shingles, counts[_counter(shingles)]))[:length]]


def _needed(size: int) -> int:
    return max(1, min(IN_COMMON, int(np.ceil(SIMILARITY * size))))


def _counter(shingles: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return shingles >> np.uint32(32 - _COUNTERS)
