"""What a router follows: how much a feature of a token reveals about the choice of its expert."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SHUFFLES = 5
_SEED = 0


class Information(NamedTuple):
    """Mutual information of a token's first-choice expert and a feature of the token."""

    feature: str
    bits: float
    """Mutual information, from the counts (plug-in estimate). Too high for few tokens: some is found by chance."""
    by_chance: float
    """The control: what is found when the experts are shuffled among the tokens, so that there is none (bits)."""
    share: float
    """(bits - by_chance) / (entropy of the expert - by_chance): 0 if they are independent, 1 if the feature decides
    the expert. Adjusted for chance as in Vinh, Epps & Bailey (JMLR 11, 2010), with the expectation by shuffling."""


def entropy(label_T: NDArray[np.integer]) -> float:
    """The entropy of labels, from their counts (bits)."""
    return _entropy(np.bincount(label_T))


def mutual_information(one_T: NDArray[np.integer], other_T: NDArray[np.integer]) -> float:
    """The mutual information of two labels of each token, from their counts (bits)."""
    return _mutual(np.asarray(one_T, np.int64), np.asarray(other_T, np.int64))


def information(feature: str, value_T: NDArray[np.integer], expert_T: NDArray[np.integer]) -> Information:
    """What a feature of the tokens says about their experts."""
    values, experts = np.unique(value_T, return_inverse=True)[1], np.asarray(expert_T, np.int64)
    found, generator = _mutual(values, experts), np.random.default_rng(_SEED)
    chance = float(np.mean([_mutual(values, generator.permutation(experts)) for _ in range(_SHUFFLES)]))
    room = entropy(experts) - chance
    return Information(feature, found, chance, (found - chance) / room if room > 1e-9 else 0.0)


def _mutual(one_T: NDArray[np.int64], other_T: NDArray[np.int64]) -> float:
    """I(X; Y) = H(X) + H(Y) - H(X, Y)."""
    joint = np.unique(one_T * (int(other_T.max()) + 1) + other_T, return_counts=True)[1]
    return max(0.0, _entropy(np.bincount(one_T)) + _entropy(np.bincount(other_T)) - _entropy(joint))


def _entropy(counts: NDArray[np.integer]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())
