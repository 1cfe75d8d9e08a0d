"""Which engine trains a run."""

from collections.abc import Mapping
from typing import Any

import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.parallel.engine import Engine
from storyteller_ds.parallel.plan import ParallelPlan
from storyteller_ds.parallel.single import SingleEngine
from storyteller_ds.parallel.world import World


def build_engine(
    run: RunConfig,
    ds_config: Mapping[str, Any] | None,
    plan: ParallelPlan,
    world: World,
    device: torch.device,
) -> Engine:
    """The engine of a run: DeepSpeed's where there is a DeepSpeed JSON, else that of one device.

    Args:
        run: the run config.
        ds_config: the DeepSpeed JSON as the user wrote it, or None.
        plan: shares of the batch and of the experts.
        world: this process among the ranks; connected, if there is a DeepSpeed JSON.
        device: where this rank's tensors live.

    Raises:
        ConfigError: deepspeed is not installed, or refuses the JSON.
    """
    if ds_config is None:
        return SingleEngine(run, world, device)
    # Imported here: without a DeepSpeed JSON nothing needs deepspeed to be installed.
    from storyteller_ds.parallel.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(run, ds_config, plan, world, device)


def check_engine(run: RunConfig, ds_config: Mapping[str, Any] | None, plan: ParallelPlan, device: torch.device) -> None:
    """What can be said against an engine before any rank waits for another.

    Raises:
        ConfigError: deepspeed is not installed, or refuses the JSON.
    """
    if ds_config is None:
        return
    from storyteller_ds.parallel.deepspeed_json import check_json, import_deepspeed, passed_json

    import_deepspeed(device)
    check_json(passed_json(run, ds_config, plan, device))
