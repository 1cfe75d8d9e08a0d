"""How a run is distributed over its ranks: expert groups and batch sizes. Arithmetic only."""

import math
from dataclasses import dataclass

from storyteller_ds.config.load import LoadedConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.strategy import Strategy, choose_strategy
from storyteller_ds.errors import ConfigError


@dataclass(frozen=True)
class ParallelPlan:
    """The settings that depend on the number of ranks."""

    world_size: int
    strategy: Strategy
    ep_size: int
    """Number of ranks that share one set of experts."""
    micro_batch_size: int
    """Sequences of one micro-batch, per rank."""
    accumulation_steps: int
    """Micro-batches per optimizer step."""

    @property
    def description(self) -> str:
        """Where the experts are, for the log."""
        if self.strategy == "local":
            return "every rank has all experts"
        return f"experts spread over {self.ep_size} rank(s) ({self.strategy})"


def make_plan(run: RunConfig, world_size: int, loaded: LoadedConfig | None = None) -> ParallelPlan:
    """Compute expert-parallel size and batch sizes.

    Args:
        run: the run config.
        world_size: number of ranks.
        loaded: where the run config came from, for the messages.

    Raises:
        ConfigError: the numbers do not divide evenly, or the combination cannot run.
    """
    if run.parallel.zero_stage is None and world_size > 1:
        raise ConfigError(
            f"{world_size} ranks were started without a DeepSpeed config; "
            "add --ds_config ds_configs/zero2.json, or start one process"
        )
    if run.parallel.zero_stage == 0 and run.precision.dtype == "fp16":
        raise ConfigError("fp16 with loss scaling needs ZeRO-1 or more; use --ds_config ds_configs/zero2_fp16.json")
    loaded = loaded or LoadedConfig.of(run)
    strategy = choose_strategy(run, loaded)
    micro, accumulation = _batch_sizes(run, world_size, loaded)
    return ParallelPlan(world_size, strategy, _ep_size(run, world_size, strategy, loaded), micro, accumulation)


def _ep_size(run: RunConfig, world_size: int, strategy: Strategy, loaded: LoadedConfig) -> int:
    experts, wanted = run.moe.num_experts, run.parallel.ep_size
    named, typed = loaded.named("parallel.ep_size"), loaded.typed("parallel.ep_size")
    largest = math.gcd(world_size, experts)
    if wanted == "auto":
        return 1 if strategy == "local" else largest
    if wanted > 1 and experts == 0:
        raise ConfigError(f"{named}, but the model has no experts (moe.num_experts=0); remove {typed}")
    if wanted > 1 and strategy == "local":
        raise ConfigError(
            f"{named}, but with parallel.strategy=local, which is all that plain ZeRO-3 has, every rank has all "
            f"experts; remove {typed}, or use --ds_config ds_configs/zero3_autoep.json, or ds_configs/zero2.json"
        )
    possible = [n for n in range(1, largest + 1) if largest % n == 0]
    if wanted not in possible:
        raise ConfigError(
            f"{named} must divide moe.num_experts={experts} and the {world_size} rank(s); "
            f"use one of {', '.join(map(str, possible))}, or auto"
        )
    return wanted


def _batch_sizes(run: RunConfig, world_size: int, loaded: LoadedConfig) -> tuple[int, int]:
    def named(name: str) -> str:
        return loaded.named(f"train.{name}")

    total = run.train.global_batch_size
    micro, accumulation = run.train.micro_batch_size, run.train.gradient_accumulation_steps
    per_step = world_size * (micro or accumulation or 1)
    if micro and accumulation:
        product = micro * accumulation * world_size
        if product != total:
            raise ConfigError(
                f"{named('global_batch_size')} is not {named('micro_batch_size')} x "
                f"{named('gradient_accumulation_steps')} x {world_size} rank(s) = {product}; "
                "leave one of the three out"
            )
        return micro, accumulation
    if total % per_step:
        parts = [
            named(each) for each in ("micro_batch_size", "gradient_accumulation_steps") if getattr(run.train, each)
        ]
        raise ConfigError(
            f"{named('global_batch_size')} cannot be split over {' x '.join([*parts, f'{world_size} rank(s)'])}; "
            f"use a multiple of {per_step}, for instance {math.ceil(total / per_step) * per_step}"
        )
    return micro or total // per_step, total // per_step if micro else accumulation or 1
