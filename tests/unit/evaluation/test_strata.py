"""Loss by position, length and rarity, compared with a loop or with values computed by hand."""

import math

import numpy as np
import pytest

from storyteller_ds.data.shards import TokenStream
from storyteller_ds.evaluation.strata import POSITIONS, RARITIES, by_length, by_position, by_rarity, token_counts


def test_by_position_equals_a_loop():
    generator = np.random.default_rng(0)
    lengths = [5, 1, 900, 40]
    story = np.repeat(np.arange(4), lengths)
    size = generator.integers(0, 8, len(story))
    nll = generator.random(len(story))
    nats, sizes, tokens = ([0.0] * len(POSITIONS) for _ in range(3))
    before, last = 0, -1
    for i in range(len(story)):
        before = 0 if story[i] != last else before
        last = story[i]
        place = max(k for k, start in enumerate(POSITIONS) if start <= before)
        nats[place], sizes[place], tokens[place] = nats[place] + nll[i], sizes[place] + size[i], tokens[place] + 1
        before += size[i]
    found = by_position(nll, size, story)
    assert [each.number for each in found] == tokens
    assert sizes[3], "the third kilobyte is reached"
    for each, n, s in zip(found, nats, sizes, strict=True):
        assert each.value == (pytest.approx(n / s / math.log(2)) if s else None)
    # The parts add up to the total.
    assert sum(nats) == pytest.approx(nll.sum())


def test_by_length_by_hand():
    nll, size = np.log(2) * np.array([1.0, 4, 9, 16]), np.array([1, 2, 3, 4])
    found = by_length(nll, size)
    assert [each.value for each in found] == pytest.approx([1, 2, 3, 4])
    assert [each.number for each in found] == [1, 1, 1, 1]
    assert by_length(nll[:3], size[:3]) == []


def test_stories_that_are_all_of_one_length():
    found = by_length(np.ones(8), np.full(8, 10))
    assert [each.number for each in found] == [8, 0, 0, 0]
    assert [each.value is None for each in found] == [False, True, True, True]


def test_by_rarity_by_hand():
    # Shares 60, 25, 10, 4, 1 % and a token that never occurs.
    counts = np.array([25, 60, 10, 4, 1, 0])
    tokens = np.array([1, 1, 0, 2, 3, 4, 5])
    nll = np.array([1.0, 3, 5, 7, 9, 11, 21])
    found = by_rarity(nll, tokens, counts)
    assert [each.value for each in found] == [2, 5, 7, 9, 16]
    assert [each.number for each in found] == [2, 1, 1, 1, 2]
    assert len(found) == len(RARITIES) - 1


def test_tokens_are_counted_over_all_shards():
    ids = np.random.default_rng(0).integers(0, 50, 10_000).astype(np.uint16)
    stream = TokenStream([ids[:3000], ids[3000:3001], ids[3001:]])
    assert token_counts(stream, 60).tolist() == [int((ids == i).sum()) for i in range(60)]
