"""A ratio of sums over stories, and its confidence interval."""

import math

import numpy as np
import pytest

from storyteller_ds.evaluation.interval import ratio


def test_by_hand():
    # 1/2 and 3/2: the ratio is 4/4, the residuals are -1 and 1, s = sqrt(2 * 2/1) / 4.
    found = ratio([1, 3], [2, 2])
    assert found.value == 1
    assert found.half_width == pytest.approx(1.959964 * math.sqrt(4) / 4)


def test_equal_stories_leave_no_doubt_and_one_story_says_nothing():
    assert ratio([2, 4, 6], [1, 2, 3]) == (2, 0)
    assert ratio([3], [2]) == (1.5, None)


def test_it_is_that_of_the_jackknife():
    # Another estimator of the same error, which leaves out each story in turn.
    generator = np.random.default_rng(0)
    size = generator.integers(200, 2000, 400)
    nll = size * generator.normal(2, 0.3, 400)
    without = np.array([np.delete(nll, i).sum() / np.delete(size, i).sum() for i in range(400)])
    error = math.sqrt(399 / 400 * ((without - without.mean()) ** 2).sum())
    assert ratio(nll, size).half_width == pytest.approx(1.959964 * error, rel=0.01)


def test_95_of_100_intervals_hold_the_true_value():
    generator = np.random.default_rng(1)
    held, naive = 0, 0
    for _ in range(1000):
        size = generator.integers(50, 150, 100)
        rate = generator.normal(2, 0.5, 100)  # what the tokens of a story have in common
        nll = size * rate
        found = ratio(nll, size)
        assert found.half_width is not None
        held += abs(found.value - 2) < found.half_width
        # Control: an interval that treats the tokens as independent is far too narrow.
        naive += abs(found.value - 2) < found.half_width / 10
    assert 920 <= held <= 975
    assert naive < 300
