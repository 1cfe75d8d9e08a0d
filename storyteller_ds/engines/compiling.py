"""Which runs compile their blocks."""

import torch
from storyteller_kernels.dispatch import choice_for

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.strategy import Strategy
from storyteller_ds.errors import ConfigError


def compiles(run: RunConfig, device: torch.device, strategy: Strategy) -> bool:
    """Whether blocks are compiled (train.compile).

    Raises:
        ConfigError: blocks should be compiled but cannot be.
    """
    obstacle = None
    if run.parallel.zero_stage == 3:
        obstacle = "ZeRO-3 gathers weights inside a block"
    elif run.moe_layers and strategy in ("stock", "autoep"):
        obstacle = f"the MoE layers of strategy {strategy} are DeepSpeed's own"
    if run.train.compile == "on" and obstacle is not None:
        raise ConfigError(f"train.compile=on is not possible here: {obstacle}; use auto or off")
    if run.train.compile == "auto":
        return obstacle is None and device.type == "cuda" and choice_for(device).name == "triton"
    return run.train.compile == "on"
