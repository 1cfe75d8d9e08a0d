"""Which experts are chosen together, compared with what their loads alone would give."""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 500


def pair_counts(expert_TK: NDArray[np.integer], num_experts: int) -> NDArray[np.int64]:
    """[E, E] symmetric, diagonal 0: how many tokens went to both of two experts.

    Args:
        expert_TK: each token's choices, all different.
        num_experts: E.
    """
    count_EE = np.zeros((num_experts, num_experts), np.int64)
    expert_TK = np.asarray(expert_TK, np.int64)
    for i in range(expert_TK.shape[1]):
        for j in range(i):
            pair_T = expert_TK[:, i] * num_experts + expert_TK[:, j]
            count_EE += np.bincount(pair_T, minlength=num_experts**2).reshape(num_experts, num_experts)
    return count_EE + count_EE.T


def expected_pairs(count_EE: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the counts would be if partners were chosen by their loads alone: u_i u_j, with the same row sums.

    An expert is never paired with itself, so the usual product of the loads does not have these sums. This is
    quasi-independence (Goodman, JASA 63, 1968), computed by iterative proportional fitting.
    """
    sum_E = count_EE.sum(axis=1).astype(np.float64)
    factor_E = np.sqrt(sum_E)
    for _ in range(_ROUNDS):
        others_E = factor_E.sum() - factor_E
        now_E = factor_E * others_E
        factor_E = factor_E * np.sqrt(np.divide(sum_E, now_E, out=np.zeros_like(now_E), where=now_E > 0))
    expected_EE: NDArray[np.float64] = np.outer(factor_E, factor_E)
    np.fill_diagonal(expected_EE, 0)
    return expected_EE


def times_expected(count_EE: NDArray[np.int64]) -> NDArray[np.float64]:
    """[E, E] counts divided by the expected ones; NaN on the diagonal and where none were expected."""
    expected_EE = expected_pairs(count_EE)
    nothing = np.full(count_EE.shape, np.nan)
    times_EE: NDArray[np.float64] = np.divide(count_EE, expected_EE, out=nothing, where=expected_EE > 1e-9)
    return times_EE
