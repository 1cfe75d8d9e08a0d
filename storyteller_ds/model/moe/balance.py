"""Router statistics for losses and metrics, and the balance loss, which measures how evenly experts are used."""

from typing import NamedTuple

import torch
from storyteller_kernels import Routing, counted
from torch import Tensor


class RouterStats(NamedTuple):
    """Statistics of one router over one micro-batch on this rank; see Routing for the fields."""

    expert_TK: Tensor
    prob_TE: Tensor
    count_E: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    entropy_sum: Tensor

    def margin_sum(self) -> Tensor:
        """[]: sum over tokens of the best expert's probability minus the second-best's."""
        best_T1 = self.expert_TK[:, :1]
        if self.expert_TK.shape[1] > 1:  # the second-best is known
            best_T, second_T = self.prob_TE.gather(1, self.expert_TK[:, :2]).unbind(1)
        else:
            best_T, second_T = self.prob_TE.gather(1, best_T1).squeeze(1), self.prob_TE.scatter(1, best_T1, 0.0).amax(1)
        return (best_T - second_T).sum()


def stats_of(routing: Routing) -> RouterStats:
    """The statistics that the layer returns."""
    return RouterStats(**{name: getattr(routing, name) for name in RouterStats._fields})


def batch_balance(load_E: Tensor, prob_sum_E: Tensor, tokens: int) -> Tensor:
    """[]: the balance loss E * sum_i f_i P_i over `tokens` tokens; 1 is perfect balance (Fedus et al. 2022, eq. 4).

    Args:
        load_E: [E] f_i, the fraction of all routed tokens that each expert gets.
        prob_sum_E: [E] router probabilities summed over tokens: P_i times `tokens`, or a rank's share of it.
        tokens: number of tokens on all ranks.
    """
    return load_E.numel() * (load_E.to(prob_sum_E.dtype) * prob_sum_E).sum() / tokens


def sequence_balance(stats: RouterStats, sequences: int) -> Tensor:
    """[B] fp32: the balance loss E * sum_i f_i P_i of each of a layer's B sequences; 1 is perfect balance.

    Args:
        stats: statistics of B sequences of equal length, one after the other.
        sequences: B.
    """
    prob_BSE = stats.prob_TE.unflatten(0, (sequences, -1))
    num_experts = prob_BSE.shape[-1]
    # Counted in integers, with each (sequence, expert) pair as one index.
    first_B1 = num_experts * torch.arange(sequences, device=prob_BSE.device)[:, None]
    pair_N = (stats.expert_TK.view(sequences, -1) + first_B1).flatten()
    count_BE = counted(pair_N, sequences * num_experts).view(sequences, num_experts)
    load_BE = count_BE / count_BE.sum(dim=1, keepdim=True)
    balance_B: Tensor = num_experts * (load_BE * prob_BSE.mean(dim=1)).sum(dim=1)
    return balance_B
