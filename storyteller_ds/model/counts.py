"""Exact numbers of parameters and of floating-point operations."""

from typing import NamedTuple

from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.canonical import is_embedding, is_expert
from storyteller_ds.model.decoder import empty_decoder


class ParameterCount(NamedTuple):
    """Numbers of parameters; a tied output projection counts once."""

    total: int
    active: int
    """Parameters that one token uses: all except the experts that it is not routed to."""


def count_parameters(run: RunConfig) -> ParameterCount:
    """Count the parameters on the meta device, without allocating memory."""
    total = experts = 0
    for name, parameter in empty_decoder(run).named_parameters():
        total += parameter.numel()
        experts += parameter.numel() if is_expert(name) else 0
    idle = experts * (run.moe.num_experts - run.moe.top_k) // run.moe.num_experts if experts else 0
    return ParameterCount(total, total - idle)


def flops_per_token(run: RunConfig, sequence_length: int | None = None) -> float:
    """Multiplications and additions of one training step, per token, forward and backward.

    Matrix products only, as usual: 2 per weight and token forward, twice that backward, plus attention's
    two products over the (S + 1) / 2 positions that a token sees on average. Recomputation is not counted.
    """
    length = sequence_length or run.data.sequence_length
    attention = 2 * 2 * run.model.num_layers * run.model.hidden_size * (length + 1) / 2
    return 3 * (2 * product_weights(run) + attention)


def product_weights(run: RunConfig) -> float:
    """Number of matrix entries that multiply a token on its way to the logits of the next token."""
    weights = 0.0
    for name, parameter in empty_decoder(run).named_parameters():
        if parameter.dim() < 2 or name.endswith("bias") or name.startswith("position_embedding"):
            continue
        is_output = name == "embedding.weight" and run.model.tie_embeddings
        if is_embedding(name) and not is_output:
            continue  # a look-up
        share = run.moe.top_k / run.moe.num_experts if is_expert(name) else 1.0
        weights += parameter.numel() * share
    return weights
