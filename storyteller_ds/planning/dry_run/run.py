"""A dry run: the first step as seen by several ranks, and whether they agree."""

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from storyteller_ds.config.load import LoadedConfig
from storyteller_ds.cores import usable_cores
from storyteller_ds.distributed.plan import ParallelPlan, make_plan
from storyteller_ds.errors import ConfigError
from storyteller_ds.model.counts import count_parameters
from storyteller_ds.planning.dry_run.loopback import Call
from storyteller_ds.planning.dry_run.rank import RankView, look_as

_LOOKED_AT = 8
"""At most this many ranks of an expert group are examined."""
_SECONDS = 300
"""Time limit for one rank."""
_LARGE = 30_000_000
"""With more parameters than this, only some layers are built."""
_LAYERS, _TOKENS, _ACCUMULATED = 2, 128, 2
"""What is kept of a large model, of a long sequence and of many micro-batches: the rest repeats these."""


@dataclass(frozen=True)
class DryRun:
    """The results of a dry run."""

    plan: ParallelPlan
    local_size: int
    views: list[RankView]
    """The ranks that were examined, in order."""
    disagreements: list[str]
    """Why the real run would hang or fail, one line each."""
    cut: list[str]
    """What was made smaller for the dry run."""

    def exchanged(self) -> Iterator[tuple[str, int, int, int]]:
        """For rank 0's first step: operation, ranks, calls, bytes that it gives."""
        found: dict[tuple[str, int], list[int]] = {}
        for call in self.views[0].stepping:
            found.setdefault((call.operation, len(call.ranks)), []).append(call.nbytes)
        for (operation, ranks), sizes in sorted(found.items()):
            yield operation, ranks, len(sizes), sum(sizes)


def dry_run(loaded: LoadedConfig, size: int, local_size: int, log: Callable[[str], None]) -> DryRun:
    """Build the engine and take a step as each of several ranks, without any of the others.

    Args:
        loaded: a config with a DeepSpeed JSON, for this many ranks.
        size: total number of ranks.
        local_size: ranks per machine.
        log: gets a line about the progress.

    Raises:
        ConfigError: the run is not possible on this many ranks.
    """
    if loaded.deepspeed is None:
        raise ConfigError("a dry run is of many ranks; add --ds_config ds_configs/zero2.json")
    plan = make_plan(loaded.run, size, loaded)
    small, left_out = cut(loaded, plan)
    ranks = looked_at(size, plan.ep_size)
    log(f"taking the first step as {len(ranks)} of {size} ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", look_as.__module__])
    workers = min(len(ranks), usable_cores())
    with ProcessPoolExecutor(workers, context, initializer=_be_quiet, max_tasks_per_child=1) as pool:
        first = pool.submit(look_as, 0, size, local_size, small, None).result(_SECONDS)
        others = [pool.submit(look_as, rank, size, local_size, small, first.said) for rank in ranks if rank]
        views = [first, *(each.result(_SECONDS) for each in others)]
    return DryRun(plan, local_size, views, [*disagreements(views)], left_out)


def looked_at(size: int, ep_size: int) -> list[int]:
    """The ranks to examine: those of the first and the last expert group, at most eight each; 0, 1 and the last."""
    of_group = range(min(ep_size, _LOOKED_AT))
    last = (size - 1) // ep_size * ep_size
    return sorted({0, min(1, size - 1), size - 1, *of_group, *(last + i for i in of_group)})


def disagreements(views: Sequence[RankView]) -> Iterator[str]:
    """Where ranks of one group do not make the same calls in the same order, so that they would wait forever."""
    members: dict[tuple[int, ...], list[RankView]] = {}
    for view in views:
        for group in view.groups:
            if view.rank not in group:
                yield f"rank {view.rank} uses a group of {_named(group)}, which it is not a member of"
            members.setdefault(group, []).append(view)
    for group, seen in members.items():
        for absent in (view.rank for view in views if view.rank in group and group not in view.groups):
            yield f"rank {seen[0].rank} uses the group of {_named(group)}, and rank {absent}, which is in it, does not"
        first = seen[0]
        expected = [call for call in (*first.building, *first.stepping) if call.ranks == group]
        for other in seen[1:]:
            calls = [call for call in (*other.building, *other.stepping) if call.ranks == group]
            if (difference := _difference(first.rank, expected, other.rank, calls)) is not None:
                yield f"in the group of {_named(group)} {difference}"


def _difference(one: int, expected: Sequence[Call], other: int, calls: Sequence[Call]) -> str | None:
    for i, (mine, its) in enumerate(zip(expected, calls, strict=False), 1):
        if mine.comparable() != its.comparable():
            return f"call {i} of rank {one} is {mine.described()}, and that of rank {other} {its.described()}"
    if len(expected) != len(calls):
        return f"rank {one} makes {len(expected)} calls, and rank {other} {len(calls)}"
    return None


def _named(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:4]))
    return f"{len(ranks)} ranks ({shown}{', …' if len(ranks) > 4 else ''})"


def cut(loaded: LoadedConfig, plan: ParallelPlan) -> tuple[LoadedConfig, list[str]]:
    """The same run without what only repeats, and a line about each thing left out."""
    run, left_out = loaded.run, []
    model, data = run.model, run.data
    layers = min(model.num_layers, _LAYERS * run.moe.every_n_layers)
    if count_parameters(run).total > _LARGE and layers < model.num_layers:
        left_out.append(f"{layers} of {model.num_layers} layers")
        model = model.model_copy(update={"num_layers": layers})
    if data.sequence_length > _TOKENS:
        left_out.append(f"{_TOKENS} of {data.sequence_length} tokens of a sequence")
        data = data.model_copy(update={"sequence_length": _TOKENS})
        model = model.model_copy(update={"context_length": run.context_length})
    steps = min(plan.accumulation_steps, _ACCUMULATED)
    if (plan.micro_batch_size, plan.accumulation_steps) != (1, steps):
        given = f"{plan.accumulation_steps} micro-batch(es) of {plan.micro_batch_size}"
        left_out.append(f"{steps} micro-batch(es) of 1 sequence in place of {given}")
    batch = {"micro_batch_size": 1, "gradient_accumulation_steps": steps, "global_batch_size": plan.world_size * steps}
    train = run.train.model_copy(update={**batch, "compile": "off"})
    small = run.model_copy(update={"model": model, "data": data, "train": train})
    return dataclasses.replace(loaded, run=small, deepspeed=_in_memory(loaded.deepspeed, left_out)), left_out


def _in_memory(given: Mapping[str, object] | None, left_out: list[str]) -> dict[str, object] | None:
    """The DeepSpeed JSON with batch sizes that follow from the run, and swapping to memory instead of NVMe."""
    if given is None:
        return None
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    json = {**given, **dict.fromkeys((name for name in sizes if name in given), "auto")}
    zero = json.get("zero_optimization")
    if isinstance(zero, Mapping):
        swapped = {
            name: {**section, "device": "cpu"}
            for name, section in zero.items()
            if isinstance(section, Mapping) and section.get("device") == "nvme"
        }
        if swapped:
            left_out.append("memory in place of NVMe")
            json["zero_optimization"] = {**zero, **swapped}
    return json


def _be_quiet() -> None:
    """Hide what libraries print, since it is not about the real ranks; errors come back as exceptions."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
