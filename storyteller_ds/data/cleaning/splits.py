"""Into which file a story goes: by its own hash, so that it stays there when the corpus is reordered or grows."""

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.spool import Spool
from storyteller_ds.errors import DataError

SPLITS = ("train", "validation", "test")
"""Files of the output are named so; of two that are alike, the story of the later split stays."""


def split_stories(spool: Spool, policy: Policy) -> NDArray[np.int8]:
    """[stories] Index of SPLITS.

    The hash is of the words: stories that differ in case and punctuation alone are on the same side.

    Raises:
        DataError: the files are to say it, and one of them does not.
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
    """Splits that are wanted and that no story fell into, as happens where there are few.

    Args:
        kept: split of each story that stays.
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
