"""The optimizer, built from canonical names so that every engine has the same groups."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from storyteller_ds.config.run import RunConfig
from storyteller_ds.config.training import OptimizerConfig
from storyteller_ds.model.canonical import is_decayed, placed_parameters
from storyteller_ds.optim.muon import Muon, Stack, hidden_matrices

STATE_KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""What is kept of every parameter: its value and AdamW's two moments."""


def muon_stacks(module: nn.Module, run: RunConfig) -> dict[nn.Parameter, Stack]:
    """The parameters of hidden matrices, where optimizer.kind is muon."""
    if run.optimizer.kind != "muon":
        return {}
    gated = run.model.activation == "swiglu"
    stacks = {p: hidden_matrices(name, p.shape, gated) for name, p, *_ in placed_parameters(module)}
    return {parameter: stack for parameter, stack in stacks.items() if stack is not None}


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, stacks: Mapping[nn.Parameter, Stack]
) -> list[dict[str, Any]]:
    """Matrices, which are decayed, gains and biases, which are not, and Muon's matrices in a group of their own."""
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter, *_ in placed_parameters(module):
        (hidden if parameter in stacks else decayed if is_decayed(name) else plain).append(parameter)
    groups = [
        {"name": "hidden", "params": hidden, "weight_decay": config.weight_decay},
        {"name": "decayed", "params": decayed, "weight_decay": config.weight_decay},
        {"name": "plain", "params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the groups, in torch's fused form, or Muon, which needs `lay_out` before its first step."""
    betas = (config.beta1, config.beta2)
    if config.kind == "muon":
        return Muon(groups, config.lr, betas, config.eps, config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def state_kinds(parameter: nn.Parameter, stacks: Mapping[nn.Parameter, Stack]) -> tuple[str, ...]:
    """What is kept of a parameter: Muon has no second moment."""
    return STATE_KINDS[:2] if parameter in stacks else STATE_KINDS
