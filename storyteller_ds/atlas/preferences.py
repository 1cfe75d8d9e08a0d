"""Which tokens an expert serves more often than chance would explain."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CLEAR = 1.96
"""A preference with a larger z is not due to chance in 95 of 100 cases."""


class Preference(NamedTuple):
    """An expert's preference for a token."""

    token: int
    served: int
    """How many occurrences of it the expert was chosen for."""
    times: float
    """The token's share of what the expert serves, divided by its share of the text."""
    z: float
    """How certain the preference is: the difference of the log-odds divided by its standard deviation."""


def log_odds(count_EV: NDArray[np.int64]) -> NDArray[np.float64]:
    """[E, V] z of the log-odds of each token at each expert, compared with all other experts.

    Log-odds with an informative Dirichlet prior (Monroe, Colaresi & Quinn, "Fightin' Words", Political Analysis 16,
    2008, eq. 15 to 22): rare tokens, for which a ratio says little, do not come first. The prior has the proportions
    of the text's tokens, and as many counts in total as there are different tokens.

    Args:
        count_EV: how often each token went to each expert.
    """
    total_V = count_EV.sum(axis=0)
    used_V = total_V > 0
    prior_V = total_V[used_V] / total_V.sum() * used_V.sum()
    here = count_EV[:, used_V] + prior_V
    there = total_V[used_V] - count_EV[:, used_V] + prior_V
    size_here, size_there = here.sum(axis=1, keepdims=True), there.sum(axis=1, keepdims=True)
    # If only one token is used, nothing else is left and there are no odds.
    rest_here, rest_there = np.maximum(size_here - here, 1e-9), np.maximum(size_there - there, 1e-9)
    difference = np.log(here / rest_here) - np.log(there / rest_there)
    z_EV = np.zeros(count_EV.shape)
    z_EV[:, used_V] = difference / np.sqrt(1 / here + 1 / there)
    return z_EV


def preferences(count_EV: NDArray[np.int64], number: int) -> list[list[Preference]]:
    """The tokens that each expert prefers most clearly; fewer if fewer are clear.

    Args:
        count_EV: how often each token went to each expert.
        number: at most this many for each expert.
    """
    z_EV, total_V, total = log_odds(count_EV), count_EV.sum(axis=0), count_EV.sum()
    found = []
    for count_V, z_V in zip(count_EV, z_EV, strict=True):
        best = [int(i) for i in np.argsort(-z_V, kind="stable")[:number] if z_V[i] > CLEAR]
        size = count_V.sum()
        found.append(
            [
                Preference(i, int(count_V[i]), float(count_V[i] / size / (total_V[i] / total)), float(z_V[i]))
                for i in best
            ]
        )
    return found
