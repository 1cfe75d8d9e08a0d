"""Shingles, compared with sets of tuples of words."""

import itertools
import random

import numpy as np

from storyteller_ds.data.cleaning.clean import signatures_of
from storyteller_ds.data.cleaning.shingles import WORDS, digest_of, jaccard, shingles_of, words_of
from tests.unit.data.cleaning.conftest import story


def tuples(words: list[str]) -> set[tuple[str, ...]]:
    size = min(WORDS, len(words))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def test_words() -> None:
    assert words_of("“Don't,” said the FOX_1. 'Go!'") == ["dont", "said", "the", "fox_1", "go"]
    assert words_of("Don't go, 'fox'!") == words_of("don’t ‘go’ fox") == ["dont", "go", "fox"]
    text = "".join(map(chr, range(128))) + story(1)
    assert words_of(text) == words_of(text + "’")  # the ASCII path and the general one agree


def test_jaccard_is_that_of_the_tuples() -> None:
    rng = random.Random(3)
    stories = [words_of(story(seed, rng.randint(1, 40))) for seed in range(30)]
    stories += [[*each[: len(each) // 2], *other[:20]] for each, other in itertools.pairwise(stories)]
    stories += [["one"], ["one", "two"], ["one", "two"], ["one"] * 50]
    shingles = shingles_of(stories)
    for one, a in zip(stories, shingles, strict=True):
        assert len(a) == len(tuples(one))
        assert (np.diff(a.astype(np.int64)) > 0).all()
        for other, b in zip(stories, shingles, strict=True):
            shared = len(tuples(one) & tuples(other))
            assert jaccard(a, b) == shared / len(tuples(one) | tuples(other))


def test_a_story_has_the_same_shingles_in_any_company() -> None:
    stories = [words_of(story(seed)) for seed in range(5)]
    together, alone = shingles_of(stories), [shingles_of([each])[0] for each in stories]
    assert all(map(np.array_equal, together, alone))


def test_the_same_words_have_the_same_digest() -> None:
    assert digest_of(words_of("The fox, the Owl.")) == digest_of(words_of("the fox -- the owl!\n"))
    assert digest_of(words_of("The fox.")) != digest_of(words_of("A fox."))


def test_signatures_estimate_the_similarity() -> None:
    shared, own = np.arange(600, dtype=np.uint32) * 7919, np.arange(400, dtype=np.uint32) * 104729 + 1
    one, other = signatures_of([np.concatenate([shared, own[:200]]), np.concatenate([shared, own[200:]])])
    assert abs((one == other).mean() - 0.6) < 0.15
