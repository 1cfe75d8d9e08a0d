"""The check between splits finds every pair that brute force finds, and nothing else."""

import random
from pathlib import Path

import numpy as np

from storyteller_ds.data.cleaning.leaks import leaks
from storyteller_ds.data.cleaning.shingles import jaccard
from tests.unit.data.cleaning.conftest import sentences, story
from tests.unit.data.cleaning.test_duplicates import spooled


def test_as_brute_force(tmp_path: Path) -> None:
    rng = random.Random(8)
    stories = [story(seed, rng.randint(3, 30)) for seed in range(60)]
    for _ in range(120):
        base = rng.choice(stories[:60]).split(". ")
        for place in rng.sample(range(len(base)), rng.randint(0, len(base) // 2)):
            base[place] = sentences(rng, 1)[0].rstrip(".")
        stories.append(". ".join(base))
    stories = sorted(stories, key=lambda each: rng.random())
    spool = spooled([each.rstrip(".") + "." for each in stories], tmp_path)
    splits = np.array(rng.choices([0, 1, 2], k=len(spool)), dtype=np.int8)

    def similarity(one: int, other: int) -> float:
        return jaccard(spool.shingles(one), spool.shingles(other))

    expected: set[int] = set()
    later = [i for i in range(len(spool)) if splits[i] == 2]
    for split in (1, 0):
        own = [i for i in range(len(spool)) if splits[i] == split]
        leaking = {i for i in own if any(similarity(i, other) >= 0.5 for other in later)}
        expected |= leaking
        later += [i for i in own if i not in leaking]
    found = leaks(spool, np.arange(len(spool)), splits)
    assert {each.dropped for each in found} == expected
    assert len(expected) > 20
    assert all(each.similarity == similarity(each.dropped, each.kept) >= 0.5 for each in found)
    assert all(splits[each.kept] > splits[each.dropped] for each in found)


def test_none_within_a_split(tmp_path: Path) -> None:
    spool = spooled([story(1), story(2), story(1) + " " + story(3, 1)], tmp_path)
    assert leaks(spool, np.arange(3), np.zeros(3, dtype=np.int8)) == []
    assert leaks(spool, np.arange(3), np.array([0, 1, 0], dtype=np.int8)) == []
    assert [each.dropped for each in leaks(spool, np.arange(3), np.array([0, 0, 2], dtype=np.int8))] == [0]
