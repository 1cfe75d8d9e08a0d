"""Whether a story of one split is, or nearly is, in another: every pair is compared that could be, with no hashing.

Two sets of which at least SIMILARITY is shared have one of their rarest elements in common, if that many of each are
looked at as the rest could not make up for (prefix filtering; Bayardo et al. 2007, "Scaling up all pairs similarity
search"). So this finds what the duplicates' signatures may have missed, and it knows nothing of them.
"""

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.cleaning.duplicates import SIMILARITY, Duplicate
from storyteller_ds.data.cleaning.shingles import jaccard
from storyteller_ds.data.cleaning.spool import Spool

_COUNTERS = 22
"""Bits of a shingle by which it is counted; several share a counter, which costs time and no pair."""


def leaks(spool: Spool, stories: NDArray[np.int64], splits: NDArray[np.int8]) -> list[Duplicate]:
    """Stories that are near to one of a later split, or have its words; each once.

    Args:
        spool: all stories.
        stories: the ones that stay, in order.
        splits: [all stories] index of splits.SPLITS.
    """
    counts = np.zeros(1 << _COUNTERS, dtype=np.int64)
    for index in stories.tolist():
        counts[spool.shingles(index) >> np.uint32(32 - _COUNTERS)] += 1
    found: list[Duplicate] = []
    held_out: dict[int, list[int]] = {}
    # From the last split to the first: what is near to a story of a later one leaks.
    for index in stories[np.argsort(-splits[stories], kind="stable")].tolist():
        shingles = spool.shingles(index)
        prefix = _rarest(shingles, counts)
        candidates = {
            other for shingle in prefix for other in held_out.get(shingle, ()) if splits[other] > splits[index]
        }
        pairs = [Duplicate(index, other, jaccard(shingles, spool.shingles(other))) for other in sorted(candidates)]
        best = max(pairs, key=lambda pair: pair.similarity, default=None)
        if best is not None and best.similarity >= SIMILARITY:
            found.append(best)
        elif splits[index] > 0:  # nothing is earlier than training
            for shingle in prefix:
                held_out.setdefault(shingle, []).append(index)
    return found


def _rarest(shingles: NDArray[np.uint32], counts: NDArray[np.int64]) -> list[int]:
    """As many of the rarest as any set that shares SIMILARITY must have one of in common."""
    length = len(shingles) - int(np.ceil(SIMILARITY * len(shingles))) + 1
    rarity = np.lexsort((shingles, counts[shingles >> np.uint32(32 - _COUNTERS)]))
    rarest: list[int] = shingles[rarity[:length]].tolist()
    return rarest
