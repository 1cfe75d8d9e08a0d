"""Top-k routing: the definition of which expert gets which token, and with which gate weight."""

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """Where every token goes; rows (routed tokens) are (token, choice) pairs in expert order, expert 0's first."""

    weight_TK: Tensor
    """[T, K] fp32: gate weight of each chosen expert; those of a token sum to 1. Has a gradient."""
    expert_TK: Tensor
    """[T, K] int64: the chosen experts, best first."""
    count_E: Tensor
    """[E] int64: rows of each expert; their sum is T * K."""
    row_TK: Tensor
    """[T, K] int64: the row of each (token, choice)."""
    token_N: Tensor
    """[T * K] int64: the token of each row; within an expert, tokens keep their order."""
    prob_TE: Tensor
    """[T, E] fp32: the router's probabilities over all experts. Has a gradient."""
    prob_sum_E: Tensor
    """[E] fp32: router probabilities summed over tokens (T * P_i of the balance loss). Has a gradient."""
    z_sum: Tensor
    """[] fp32: sum over tokens of logsumexp(logits)^2. Has a gradient."""
    entropy_sum: Tensor
    """[] fp32: sum over tokens of the entropy of the router's distribution (nats). No gradient."""


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None = None) -> Routing:
    """Choose the experts of each token.

    Logits x W^T in fp32; softmax over all experts; the top k, ties to the lower index; the kept
    probabilities renormalized to sum to 1 (Mixtral, Jiang et al. 2024, sec. 2.1).

    Args:
        x_TD: [T, D] token vectors.
        weight_ED: [E, D] router weight.
        top_k: K, between 1 and E.
        noise_TE: [T, E], added to the logits (noisy gating), or None.
    """
    with torch.autocast(x_TD.device.type, enabled=False):
        logit_TE = x_TD.float() @ weight_ED.float().t()
    if noise_TE is not None:
        logit_TE = logit_TE + noise_TE
    log_z_T = torch.logsumexp(logit_TE, dim=-1)
    prob_TE = torch.softmax(logit_TE, dim=-1)
    # A stable sort, because torch.topk leaves the order of equal values undefined.
    sorted_TE, index_TE = torch.sort(prob_TE, dim=-1, descending=True, stable=True)
    kept_TK, expert_TK = sorted_TE[:, :top_k], index_TE[:, :top_k].contiguous()
    weight_TK = kept_TK / kept_TK.sum(dim=-1, keepdim=True)

    expert_N = expert_TK.flatten()
    order_N = torch.argsort(expert_N, stable=True)
    row_N = torch.empty_like(order_N)
    row_N[order_N] = torch.arange(order_N.numel(), device=order_N.device)
    with torch.no_grad():
        # H(p) = logsumexp(logits) - sum p * logit
        entropy_sum = (log_z_T - (prob_TE * logit_TE).sum(dim=-1)).sum()
    return Routing(
        weight_TK=weight_TK,
        expert_TK=expert_TK,
        count_E=counted(expert_N, weight_ED.shape[0]),
        row_TK=row_N.view_as(expert_TK),
        token_N=order_N // top_k,
        prob_TE=prob_TE,
        prob_sum_E=prob_TE.sum(dim=0),
        z_sum=log_z_T.square().sum(),
        entropy_sum=entropy_sum,
    )


def counted(index_N: Tensor, size: int) -> Tensor:
    """[size] int64: how often each number from 0 to size - 1 occurs; a bincount that never waits for a GPU."""
    return index_N.new_zeros(size).scatter_add_(0, index_N, torch.ones_like(index_N))
