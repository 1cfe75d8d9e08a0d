"""Mutual information and its chance level, compared with sklearn and checked on known rules."""

import math

import numpy as np
import pytest

from storyteller_ds.atlas.information import entropy, information, mutual_information

GENERATOR = np.random.default_rng(0)
EXPERTS = GENERATOR.integers(0, 8, 3000)
RELATED = np.where(GENERATOR.random(3000) < 0.5, EXPERTS, GENERATOR.integers(0, 8, 3000))


def test_by_hand():
    # Two equally frequent experts are one bit; a feature that is right in 3 of 4 cases tells 1 - H(1/4) of it.
    expert, feature = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([5, 5, 5, 9, 9, 9, 9, 5])
    assert entropy(expert) == 1
    assert mutual_information(expert, feature) == pytest.approx(1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))


def test_it_is_sklearns():
    sklearn = pytest.importorskip("sklearn.metrics")
    found = mutual_information(EXPERTS, RELATED)
    assert found == pytest.approx(sklearn.mutual_info_score(EXPERTS, RELATED) / math.log(2))
    assert found == mutual_information(RELATED, EXPERTS)


def test_what_chance_finds_is_what_sklearn_expects():
    cluster = pytest.importorskip("sklearn.metrics.cluster")
    rare = GENERATOR.integers(0, 300, 3000)
    found = information("rare", rare, EXPERTS)
    expected = cluster.expected_mutual_information(cluster.contingency_matrix(rare, EXPERTS), 3000) / math.log(2)
    assert expected > 0.2, "so many values find a lot by chance"
    assert found.by_chance == pytest.approx(expected, rel=0.02)
    # There is no dependence: the share shows that, the plain figure does not.
    assert found.bits > 0.2
    assert abs(found.share) < 0.02


@pytest.mark.parametrize("values", [8, 200])
def test_a_feature_that_decides_the_expert(values):
    feature = GENERATOR.integers(0, values, 3000)
    found = information("rule", feature, feature % 8)
    assert found.share == pytest.approx(1)
    assert found.bits == pytest.approx(entropy(feature % 8))


def test_a_router_that_has_no_choice():
    found = information("any", EXPERTS, np.zeros(3000, np.int64))
    assert (found.bits, found.share) == (0, 0)
    assert information("one token", np.array([3]), np.array([1])).share == 0
