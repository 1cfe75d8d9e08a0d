"""The optimizer, built from canonical names so that every engine has the same groups."""

from typing import Any

import torch
from torch import nn

from storyteller_ds.config.training import OptimizerConfig
from storyteller_ds.model.layout import is_decayed, placed_parameters


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups: matrices, which are decayed, and gains and biases, which are not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter, _ in placed_parameters(module):
        (decayed if is_decayed(name) else plain).append(parameter)
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": config.weight_decay},
        {"name": "plain", "params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the groups, in torch's fused form."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
