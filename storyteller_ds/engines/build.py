"""Which engine trains a run."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from storyteller_ds.config.deepspeed import with_nvme_path
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import Engine
from storyteller_ds.engines.compiling import compiles
from storyteller_ds.engines.deepspeed.nvme.compile import build_ahead
from storyteller_ds.engines.deepspeed.nvme.folders import check_nvme, own_swap_folders
from storyteller_ds.engines.deepspeed.nvme.settings import nvme_sections
from storyteller_ds.engines.precision import held_dtype
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.model import count_parameters


def build_engine(
    run: RunConfig,
    ds_config: Mapping[str, Any] | None,
    plan: ParallelPlan,
    world: World,
    device: torch.device,
) -> Engine:
    """Build the engine of a run: DeepSpeed's if there is a DeepSpeed JSON, otherwise the one for a single device.

    Args:
        run: the run config.
        ds_config: the DeepSpeed JSON as the user wrote it, or None.
        plan: shares of the batch and of the experts.
        world: this process among the ranks; must be connected if there is a DeepSpeed JSON.
        device: where this rank's tensors live.

    Raises:
        ConfigError: deepspeed is not installed, or refuses the JSON.
    """
    if ds_config is None:
        return SingleEngine(run, world, device)
    # Imported here: without a DeepSpeed JSON nothing needs deepspeed to be installed.
    from storyteller_ds.engines.deepspeed.engine import DeepSpeedEngine

    return DeepSpeedEngine(run, ds_config, plan, world, device)


def check_engine(
    run: RunConfig, ds_config: Mapping[str, Any] | None, plan: ParallelPlan, world: World, device: torch.device
) -> None:
    """Refuse an engine that cannot work, before any rank waits for another.

    Raises:
        ConfigError: deepspeed is not installed, refuses the JSON, or could not swap to the folder named there; or
            blocks should be compiled but cannot be.
    """
    compiles(run, device, plan.strategy)
    if ds_config is None:
        return
    from storyteller_ds.engines.deepspeed.config import check_json, import_deepspeed, passed_json

    passed = passed_json(run, ds_config, plan, device)
    import_deepspeed(device)
    check_json(passed)
    check_nvme(passed, count_parameters(run).total, held_dtype(run, device).itemsize, world)


@contextlib.contextmanager
def prepared_machine(
    run: RunConfig,
    ds_config: Mapping[str, Any] | None,
    world: World,
    device: torch.device,
    log: Callable[[str], None],
) -> Iterator[Mapping[str, Any] | None]:
    """Prepare every machine for an engine that swaps to NVMe: compile an operation, and create a folder for the run.

    Called by every rank, connected; the folder is removed at the end of the block.

    Yields:
        The DeepSpeed JSON for build_engine.

    Raises:
        ConfigError: the operation cannot be compiled.
    """
    if ds_config is None or not nvme_sections(ds_config):
        yield ds_config
        return
    build_ahead(world, device, log, run.parallel.timeout_minutes)
    with own_swap_folders(with_nvme_path(ds_config, run), world) as with_folder:
        yield with_folder
