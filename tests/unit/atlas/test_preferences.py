"""Which tokens an expert prefers, compared with a plain loop and checked on known cases."""

import math

import numpy as np
import pytest

from storyteller_ds.atlas.preferences import log_odds, preferences


def test_it_is_that_of_a_plain_loop():
    count_EV = np.random.default_rng(0).integers(0, 40, (3, 7))
    count_EV[:, 4] = 0  # a token that does not occur
    used = [v for v in range(7) if v != 4]
    total = count_EV.sum()
    found = log_odds(count_EV)
    for e in range(3):
        others = [i for i in range(3) if i != e]
        prior = {v: len(used) * count_EV[:, v].sum() / total for v in used}
        for v in used:
            here, there = count_EV[e, v], sum(count_EV[i, v] for i in others)
            all_here = sum(count_EV[e, w] for w in used)
            all_there = sum(count_EV[i, w] for i in others for w in used)
            odds = [
                math.log((n + prior[v]) / (size + sum(prior.values()) - n - prior[v]))
                for n, size in ((here, all_here), (there, all_there))
            ]
            z = (odds[0] - odds[1]) / math.sqrt(1 / (here + prior[v]) + 1 / (there + prior[v]))
            assert found[e, v] == pytest.approx(z)
        assert found[e, 4] == 0


def test_a_planted_preference_is_found_before_a_rare_token():
    count_EV = np.tile(np.array([500, 300, 100, 0]), (4, 1))
    count_EV[2, 1], count_EV[2, 3] = 600, 2  # twice as often as the others; and two of a token that no other expert has
    (best, *_) = preferences(count_EV, 10)[2]
    assert (best.token, best.served) == (1, 600)
    assert best.times == pytest.approx(600 / 1202 / (1500 / count_EV.sum()))
    assert best.z > 5


def test_chance_is_no_preference():
    generator = np.random.default_rng(1)
    count_EV = generator.multinomial(5000, np.full(50, 0.02), 8)
    found = sum(len(each) for each in preferences(count_EV, 50))
    assert found < 0.06 * 8 * 50, "one-sided, 2.5 % are expected"


@pytest.mark.parametrize("count_EV", [np.zeros((2, 3), np.int64), np.array([[7, 0], [9, 0]]), np.array([[5, 2]])])
def test_where_there_is_nothing_to_compare(count_EV):
    assert np.isfinite(log_odds(count_EV)).all()
    assert preferences(count_EV, 3) == [[] for _ in count_EV]
