"""The confidence interval of a ratio of two sums over stories."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_Z = 1.959964
"""95 % of a normal distribution lies within this many standard deviations of the mean."""


class Estimate(NamedTuple):
    """A value and half the width of its 95 % confidence interval."""

    value: float
    half_width: float | None
    """None: there are fewer than two stories."""


def ratio(numerator_N: ArrayLike, denominator_N: ArrayLike) -> Estimate:
    """The sum of the numerators over that of the denominators, with its interval over stories.

    The samples are stories, not tokens: the tokens of one story depend on each other. The standard error is that of a
    ratio estimator (Cochran, Sampling Techniques, 3rd ed. 1977, ch. 6), the clustered one that Miller (2024,
    2411.00640) recommends for evaluations. With fewer than thirty stories the interval is somewhat too narrow.

    Args:
        numerator_N: one for each story.
        denominator_N: likewise; must not sum to 0.
    """
    numerator, denominator = np.asarray(numerator_N, np.float64), np.asarray(denominator_N, np.float64)
    total, stories = float(denominator.sum()), len(denominator)
    value = float(numerator.sum()) / total
    if stories < 2:
        return Estimate(value, None)
    squares = float(((numerator - value * denominator) ** 2).sum())
    return Estimate(value, _Z * math.sqrt(squares * stories / (stories - 1)) / total)
