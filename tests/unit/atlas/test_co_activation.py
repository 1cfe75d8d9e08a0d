"""Pairs of experts: counts compared with loops, and the counts expected by chance."""

import numpy as np
import pytest

from storyteller_ds.atlas.co_activation import expected_pairs, pair_counts, times_expected


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_counts_are_those_of_a_loop(top_k):
    generator = np.random.default_rng(0)
    expert_TK = np.array([generator.permutation(5)[:top_k] for _ in range(400)])
    expected = np.zeros((5, 5), np.int64)
    for chosen in expert_TK.tolist():
        for i in chosen:
            for j in chosen:
                expected[i, j] += i != j
    assert (pair_counts(expert_TK, 5) == expected).all()


def test_partners_by_load_alone_are_as_expected():
    weight = np.array([1.0, 2.0, 3.0, 4.0, 0.5])
    exact = np.outer(weight, weight) * 1000
    np.fill_diagonal(exact, 0)
    assert expected_pairs(exact.astype(np.int64)) == pytest.approx(exact)
    # Control: the usual product of the loads is wrong, since an expert is never its own partner.
    sums = exact.sum(axis=1)
    assert np.outer(sums, sums)[2, 3] / sums.sum() < 0.9 * exact[2, 3]


def test_sums_are_kept_and_a_planted_pair_is_found():
    generator = np.random.default_rng(1)
    expert_TK = np.array([generator.permutation(6)[:2] for _ in range(3000)])
    expert_TK[:600] = (1, 4)
    count_EE = pair_counts(expert_TK, 6)
    assert expected_pairs(count_EE).sum(axis=1) == pytest.approx(count_EE.sum(axis=1), rel=1e-6)
    times_EE = times_expected(count_EE)
    assert np.unravel_index(np.nanargmax(times_EE), (6, 6)) == (1, 4)
    assert times_EE[1, 4] > 1.5
    assert np.isnan(times_EE.diagonal()).all()


def test_two_experts_and_idle_ones():
    assert times_expected(pair_counts(np.array([[0, 1], [1, 0]]), 2))[0, 1] == pytest.approx(1)
    times_EE = times_expected(pair_counts(np.array([[0, 1], [1, 2], [0, 2]]), 4))
    assert times_EE[0, 1] == pytest.approx(1)
    assert np.isnan(times_EE[3]).all(), "nobody's partner"
    # An expert that is in every pair: its pairs follow the loads, whatever their counts.
    assert times_expected(pair_counts(np.array([[0, 1]] * 5 + [[0, 2]] * 3), 3))[0, 2] == pytest.approx(1, rel=0.05)
