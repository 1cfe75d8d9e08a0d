"""Which file a story goes into: by its own hash, so that it stays there when the corpus is reordered or grows."""

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.spool import Spool
from storyteller_ds.errors import DataError

SPLITS = ("train", "validation", "test")
"""Names of the output files; of two similar stories, the one of the later split is kept."""


def split_stories(spool: Spool, policy: Policy) -> NDArray[np.int8]:
    """[stories] Index in SPLITS of each story's split.

    The hash is of the words: stories that differ only in case and punctuation are in the same split.

    Raises:
        DataError: the files are to name the splits, and one of them does not.
    """
    if policy.splitting == "given":
        if (spool.given_splits < 0).any():
            raise DataError(
                "--splits given needs files that are named for splits, such as train.txt and validation.txt; "
                "name all of them so, or leave --splits out"
            )
        return spool.given_splits
    place = spool.digests[:, 0] / 2.0**64
    held_out = policy.test_fraction + policy.validation_fraction
    return np.where(place < policy.test_fraction, 2, np.where(place < held_out, 1, 0)).astype(np.int8)


def empty_splits(kept: NDArray[np.int8], policy: Policy) -> list[str]:
    """Splits that are wanted but that no story fell into, as happens if there are few.

    Args:
        kept: split of each story that is kept.
        policy: says which are wanted.

    Raises:
        DataError: nothing is left to train on.
    """
    if not (kept == 0).any():
        raise DataError(
            f"none of {len(kept):,} stories fell into train; use more text, or lower the fractions held out"
        )
    fractions = {1: policy.validation_fraction, 2: policy.test_fraction}
    wanted = [index for index, fraction in fractions.items() if fraction > 0 and policy.splitting == "hash"]
    return [SPLITS[index] for index in wanted if not (kept == index).any()]
