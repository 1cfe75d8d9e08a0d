"""How well a model's confidence matches its accuracy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.evaluation.token_scores import TokenScores

BINS = 15
"""Number of bins, as in Guo et al."""


class ReliabilityBin(NamedTuple):
    """Tokens whose top prediction had about the same probability."""

    confidence: float
    """Mean probability of the likeliest token."""
    accuracy: float
    """How often it was right (fraction of the tokens)."""
    tokens: int


class Calibration(NamedTuple):
    """The result of expected_calibration_error."""

    error: float
    accuracy: float
    """How often the likeliest token was right (fraction of the tokens)."""
    bins: list[ReliabilityBin]
    """Only those that have tokens."""


def expected_calibration_error(scores: TokenScores) -> Calibration:
    """ECE of the likeliest next token (Guo et al. 2017, 1706.04599, eq. 3), with bins of equal width.

    An error of 0 means that predictions made with 70 % confidence are right 70 % of the time.
    """
    place = np.clip(np.ceil(scores.confidence_T * BINS).astype(np.int64) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    confidence = _mean(place, scores.confidence_T.astype(np.float64), count)
    accuracy = _mean(place, scores.right_T.astype(np.float64), count)
    bins = [ReliabilityBin(float(confidence[i]), float(accuracy[i]), int(count[i])) for i in range(BINS) if count[i]]
    total = int(count.sum())
    error = sum(each.tokens / total * abs(each.accuracy - each.confidence) for each in bins)
    return Calibration(error, float(scores.right_T.mean()), bins)


def _mean(place: NDArray[np.int64], value: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    total = np.bincount(place, weights=value, minlength=BINS)
    return np.divide(total, count, out=np.zeros(BINS), where=count > 0)
