"""The steps that look at each story by itself, for a batch of stories at once: the work of one process."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from storyteller_ds.data.cleaning.filters import reason_to_drop
from storyteller_ds.data.cleaning.long_tales import cut
from storyteller_ds.data.cleaning.normalize import normalize
from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.shingles import digest_of, shingles_of, words_of
from storyteller_ds.data.cleaning.tally import EXAMPLE_CHARACTERS, Count, Tally

PERMUTATIONS = 256
"""Length of a MinHash signature."""
_SEED = 17


class Cleaned(NamedTuple):
    """Stories that are kept, and what happened to the others."""

    texts: list[str]
    word_counts: list[int]
    digests: list[bytes]
    """Digest of the words of each story (digest_of)."""
    shingles: list[NDArray[np.uint32]]
    signatures: NDArray[np.uint32]
    """[stories, PERMUTATIONS]"""
    vocabulary: Counter[str]
    """How often each word occurs."""
    tally: Tally


def clean(stories: Sequence[str], policy: Policy) -> Cleaned:
    """Normalize, cut, filter and hash stories; a pure function of them."""
    tally, texts, all_words = Tally(), [], []
    for story in stories:
        text, repairs = normalize(story, policy.punctuation)
        for name in repairs:
            tally.repaired.setdefault(name, Count()).add(story)
        parts = cut(text, policy.max_characters)
        tally.spaces += len(story) - sum(map(len, parts))
        tally.read.stories += len(parts)
        tally.read.characters += len(story)
        if len(parts) > 1:
            tally.repaired.setdefault("cut", Count()).add(story)
        for part in parts:
            reason = reason_to_drop(part, policy)
            if reason is None:
                texts.append(part)
                all_words.append(words_of(part))
            else:
                end = f"… {part[-EXAMPLE_CHARACTERS:]}" if reason == "unfinished" else None
                tally.dropped.setdefault(reason, Count()).add(part, end)
    shingles = shingles_of(all_words) if all_words else []
    return Cleaned(
        texts,
        [*map(len, all_words)],
        [*map(digest_of, all_words)],
        shingles,
        signatures_of(shingles),
        Counter(chain.from_iterable(all_words)),
        tally,
    )


def signatures_of(shingles: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """[len(shingles), PERMUTATIONS] MinHash of each set."""
    if not shingles:
        return np.empty((0, PERMUTATIONS), dtype=np.uint32)
    hashes = [each.astype(np.uint64) for each in shingles]
    rows = RMinHash.digest_matrix_from_token_hash_sets(hashes, num_perm=PERMUTATIONS, seed=_SEED).to_rows()
    return np.asarray(rows, dtype=np.uint32)
