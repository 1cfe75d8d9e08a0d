"""The optimizer, built from canonical names so that every engine has the same groups."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from storyteller_ds.config.run import RunConfig
from storyteller_ds.config.training import OptimizerConfig
from storyteller_ds.model.canonical import full_shape, is_decayed, is_embedding, is_expert, placed_parameters
from storyteller_ds.optim.muon import Muon, Stack, hidden_matrices

STATE_KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""The kinds of training state of a parameter: its value and AdamW's two moments."""


def muon_stacks(module: nn.Module, run: RunConfig) -> dict[nn.Parameter, Stack]:
    """The parameters that hold hidden matrices; empty unless optimizer.kind is muon."""
    if run.optimizer.kind != "muon":
        return {}
    rows = run.model.intermediate_size
    stacks = {p: hidden_matrices(name, full_shape(p), rows) for name, p, *_ in placed_parameters(module)}
    return {parameter: stack for parameter, stack in stacks.items() if stack is not None}


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, stacks: Mapping[nn.Parameter, Stack]
) -> list[dict[str, Any]]:
    """Group parameters by their settings: Muon's matrices, other decayed parameters, and undecayed gains and biases.

    A group's learning rate is `lr_ratio` times that of the step; Muon's groups are updated every `period` steps,
    according to the `number` of the step (set_step).
    """
    groups: dict[tuple[str, float, int], dict[str, Any]] = {}
    # This order determines how ZeRO lays out its vectors.
    for name in ("hidden", "decayed", "plain"):
        decay = 0.0 if name == "plain" else config.weight_decay
        for ratio in (1.0, config.embedding_lr_ratio, config.output_lr_ratio):
            for period in (1, config.expert_period):
                settings = {"weight_decay": decay, "lr_ratio": ratio, "period": period, "number": 1}
                groups[name, ratio, period] = {"name": name, "params": [], **settings}
    for name, parameter, *_ in placed_parameters(module):
        kind = "hidden" if parameter in stacks else "decayed" if is_decayed(name) else "plain"
        period = config.expert_period if parameter in stacks and is_expert(name) else 1
        groups[kind, _lr_ratio(name, config), period]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _lr_ratio(name: str, config: OptimizerConfig) -> float:
    if is_embedding(name):
        return config.embedding_lr_ratio
    return config.output_lr_ratio if name == "lm_head.weight" else 1.0


def set_step(optimizer: Any, lr: float, number: int) -> None:
    """Set the learning rate and the number of the next step, counted from 1, in all groups of parameter_groups."""
    for group in optimizer.param_groups:
        group["lr"], group["number"] = lr * group["lr_ratio"], number


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, dtype: torch.dtype = torch.float32
) -> torch.optim.AdamW:
    """Build torch's fused AdamW over the groups, or Muon, which needs `lay_out` before its first step.

    Args:
        groups: see parameter_groups.
        config: which optimizer, and its settings.
        dtype: dtype of Muon's matrix products.
    """
    betas = (config.beta1, config.beta2)
    if config.kind == "muon":
        return Muon(groups, config.lr, betas, config.eps, config.momentum, dtype)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def state_kinds(parameter: nn.Parameter, stacks: Mapping[nn.Parameter, Stack]) -> tuple[str, ...]:
    """The kinds of state kept for a parameter; Muon has no second moment."""
    return STATE_KINDS[:2] if parameter in stacks else STATE_KINDS
