"""What one rank does in its first step: its groups, its part of the model, and every collective."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from storyteller_ds.config.load import LoadedConfig
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.build import build_engine
from storyteller_ds.engines.step import finished
from storyteller_ds.planning.dry_run.loopback import Call, Speech, connected

T = TypeVar("T")


@dataclass(frozen=True)
class RankView:
    """A rank as seen by itself."""

    rank: int
    groups: tuple[tuple[int, ...], ...]
    """Ranks of each process group that it has used."""
    held: dict[str, tuple[int, ...]]
    """Shape of every parameter that it holds; under ZeRO-3, of its flat partition."""
    optimized: int
    """Number of elements whose optimizer state it keeps."""
    building: tuple[Call, ...]
    """Collectives while the engine was built."""
    stepping: tuple[Call, ...]
    """Collectives of the first optimizer step."""
    said: list[list[int]] = field(default_factory=list)
    """What rank 0 told the others; empty for the others."""


class _Alone(World):
    """A world whose other ranks do what this one does."""

    def together(self, action: Callable[[], T]) -> list[T]:
        return [action()] * self.size

    def on_main(self, action: Callable[[], T]) -> T:
        return action()

    def on_each_machine(self, action: Callable[[], T]) -> T:
        return action()

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor


def look_as(rank: int, size: int, local_size: int, loaded: LoadedConfig, heard: Sequence[list[int]] | None) -> RankView:
    """Build a rank's engine and take one step. Needs its own process, since DeepSpeed keeps its groups until it ends.

    Args:
        rank: which rank.
        size: total number of ranks.
        local_size: ranks per machine.
        loaded: a config with a DeepSpeed JSON.
        heard: what rank 0 said in its turn; None: this is rank 0.

    Raises:
        ConfigError: DeepSpeed or the model refuses the config.
    """
    torch.set_num_threads(1)
    local_rank = rank % local_size
    # The variables of its launcher that DeepSpeed reads.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank), LOCAL_SIZE=str(local_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    speech = Speech(heard)
    with connected(rank, size, speech) as calls:
        view = first_step(_Alone(rank, local_rank, size, local_size), loaded, calls)
    return dataclasses.replace(view, said=speech.said)


def first_step(world: World, loaded: LoadedConfig, calls: Sequence[Call]) -> RankView:
    """Build a rank's engine and take one step with a batch that is the same on all ranks.

    Args:
        world: the ranks, already connected.
        loaded: a config with a DeepSpeed JSON.
        calls: grows with every collective.
    """
    run = loaded.run
    plan = make_plan(run, world.size, loaded)
    engine: Any = build_engine(run, loaded.deepspeed, plan, world, torch.device("cpu"))
    building = tuple(calls)
    random = torch.Generator().manual_seed(run.seed)
    shape = (plan.micro_batch_size, run.data.sequence_length + 1)
    token_BS = torch.randint(run.tokenizer.vocab_size, shape, generator=random)
    batch = MicroBatch(token_BS[:, :-1].contiguous(), token_BS[:, 1:].contiguous())
    finished([engine.begin_step([batch] * plan.accumulation_steps, run.optimizer.lr)])
    stepping = tuple(calls[len(building) :])
    held = {
        name: tuple(getattr(parameter, "ds_tensor", parameter).shape)
        for name, parameter in engine.decoder.named_parameters()
    }
    optimized = _optimized(engine.optimizer, engine.stage, engine.decoder)
    engine.close()
    groups = tuple(sorted({call.ranks for call in (*building, *stepping)}, key=lambda ranks: (len(ranks), ranks)))
    return RankView(world.rank, groups, held, optimized, building, stepping)


def _optimized(optimizer: Any, stage: int, decoder: nn.Module) -> int:
    if stage == 0:
        return sum(parameter.numel() for parameter in decoder.parameters())
    from storyteller_ds.engines.deepspeed import private

    vectors = private.sub_groups(optimizer) if stage == 3 else [p.vector for p in private.flat_partitions(optimizer)]
    return sum(vector.numel() for vector in vectors)
