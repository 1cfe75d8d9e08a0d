"""How many validation stories are in the training text, exactly or nearly, estimated from samples in a few seconds."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from storyteller_ds.data.cleaning.shingles import digest_of, jaccard, shingles_of, words_of

_SIMILARITY = 0.5
"""The same as in cleaning (data/cleaning/duplicates.py, which needs ftfy)."""
_LOOKED_AT = 200
"""How many validation stories are examined."""
_AT_ONCE = 500
_SECONDS = 2.0
"""Time limit; training stories beyond it are not compared."""


class Leaked(NamedTuple):
    """How many validation stories were found, how many were examined, and with how many training stories."""

    exact: int
    near: int
    looked_at: int
    compared: int


def leaked(train: Sequence[str], validation: Sequence[str]) -> Leaked:
    """Count validation stories whose exact words are in the training stories, and those that share most word sequences.

    Args:
        train: the training stories that were read.
        validation: likewise; the first few hundred are examined.
    """
    wanted = [words for story in validation[:_LOOKED_AT] if (words := words_of(story))]
    if not wanted:
        return Leaked(0, 0, 1, len(train))
    digests = [digest_of(words) for words in wanted]
    sets = shingles_of(wanted)
    everything = np.concatenate(sets)
    owner = np.repeat(np.arange(len(sets)), [*map(len, sets)])
    order = np.argsort(everything, kind="stable")
    everything, owner = everything[order], owner[order]
    exact: set[int] = set()
    near: set[int] = set()
    compared = 0
    end = time.monotonic() + _SECONDS
    for start in range(0, len(train), _AT_ONCE):
        stories = [words for story in train[start : start + _AT_ONCE] if (words := words_of(story))]
        known = {digest_of(words) for words in stories}
        exact |= {index for index, digest in enumerate(digests) if digest in known}
        for shingles in shingles_of(stories) if stories else ():
            first = np.searchsorted(everything, shingles, "left")
            last = np.searchsorted(everything, shingles, "right")
            shared = np.zeros(len(sets), dtype=np.int64)
            for a, b in zip(first[first < last].tolist(), last[first < last].tolist(), strict=True):
                shared[owner[a:b]] += 1
            likely = np.flatnonzero(shared >= _SIMILARITY * len(shingles) / 2)
            near |= {int(i) for i in likely if jaccard(sets[i], shingles) >= _SIMILARITY}
        compared = min(start + _AT_ONCE, len(train))
        if time.monotonic() > end:
            break
    return Leaked(len(exact), len(near - exact), len(wanted), compared)
