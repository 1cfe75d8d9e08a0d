"""What the steps that compare stories decide: which are kept, in which split, and why the others are dropped."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.cleaning.duplicates import Duplicate, exact_duplicates, near_duplicates, ranked, without
from storyteller_ds.data.cleaning.leaks import leaks
from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.splits import SPLITS, empty_splits, split_stories
from storyteller_ds.data.cleaning.spool import Spool
from storyteller_ds.data.cleaning.tally import EXAMPLE_CHARACTERS, Count, Tally

COMPARED = {
    "exact_duplicate": "the same words as another story of the split",
    "near_duplicate": "nearly the same as another story of the split",
    "exact_leak": "the same words as a story of a later split",
    "near_leak": "nearly the same as a story of another split",
}
"""Why a story is dropped in favor of another one."""


class Decisions(NamedTuple):
    """The decisions about all stories of a spool."""

    kept: NDArray[np.int64]
    """Indices of the stories that are kept, in order."""
    splits: NDArray[np.int8]
    """[stories] Index in SPLITS."""
    found_by_check: int
    """Number of leaks between splits that the previous step left, which are dropped too."""
    empty: list[str]
    """Splits that are wanted but have no story."""


def decide(spool: Spool, policy: Policy, tally: Tally) -> Decisions:
    """Drop duplicates and leaks, and count them.

    Raises:
        DataError: nothing is left to train on.
    """
    splits = split_stories(spool, policy)
    order = ranked(spool, splits)
    exact = exact_duplicates(spool, order)
    order = without(order, exact)
    near = near_duplicates(spool, order)
    kept = np.sort(without(order, near))
    left = leaks(spool, kept, splits)
    kept = without(kept, left)
    for kind, duplicates in (("exact", exact), ("near", near + left)):
        for duplicate in sorted(duplicates):
            _count(spool, splits, kind, duplicate, tally)
    return Decisions(kept, splits, len(left), empty_splits(splits[kept], policy))


def _count(spool: Spool, splits: NDArray[np.int8], kind: str, duplicate: Duplicate, tally: Tally) -> None:
    crosses = splits[duplicate.dropped] != splits[duplicate.kept]
    text, other = spool.text(duplicate.dropped), spool.text(duplicate.kept)
    half = EXAMPLE_CHARACTERS // 2
    where = SPLITS[splits[duplicate.kept]]
    example = f"{text[:half]} … like, by {duplicate.similarity:.0%}, in {where}: {other[:half]} …"
    tally.dropped.setdefault(f"{kind}_{'leak' if crosses else 'duplicate'}", Count()).add(text, example)
