"""The results of a dry run, for people and for programs."""

import math
from collections import Counter
from typing import Any

from rich import box
from rich.filesize import decimal
from rich.table import Table

from storyteller_ds.planning.dry_run.run import DryRun


def lines(found: DryRun) -> list[str]:
    """Ranks, groups and parts of the model, one line each."""
    plan, views = found.plan, found.views
    machines = -(-plan.world_size // found.local_size)
    groups = Counter(len(ranks) for ranks in views[0].groups)
    held = [sum(math.prod(shape) for shape in view.held.values()) for view in views]
    optimized = [view.optimized for view in views]
    agree = "no" if found.disagreements else "yes"
    shown = [
        f"{plan.world_size} ranks on {machines} machine(s) of {found.local_size}: {plan.description}; "
        f"{plan.micro_batch_size} sequence(s) x {plan.accumulation_steps} accumulation step(s) each",
        f"looked at: ranks {', '.join(str(view.rank) for view in views)}",
        f"groups of a rank: {', '.join(f'{number} of {size} ranks' for size, number in sorted(groups.items()))}",
        f"numbers of the model that a rank holds: {_range(held)}; with optimizer state: {_range(optimized)}",
        f"all ranks of a group make the same calls in the same order: {agree}",
    ]
    return [*shown, *([f"made smaller for the dry run: {'; '.join(found.cut)}"] if found.cut else [])]


def table(found: DryRun) -> Table:
    """What rank 0 exchanges in the first step, at the size of the dry run and in fp32 as on a CPU."""
    rows = Table(box=box.MARKDOWN)
    rows.add_column("exchanged in that step")
    for name in ("ranks", "calls", "bytes given by rank 0"):
        rows.add_column(name, justify="right")
    for operation, ranks, calls, size in found.exchanged():
        rows.add_row(operation, str(ranks), str(calls), decimal(size))
    return rows


def as_json(found: DryRun) -> dict[str, Any]:
    """Everything, with the calls of each rank that was examined."""
    return {
        "world_size": found.plan.world_size,
        "ep_size": found.plan.ep_size,
        "strategy": found.plan.strategy,
        "made_smaller": found.cut,
        "disagreements": found.disagreements,
        "ranks": [
            {
                "rank": view.rank,
                "groups": view.groups,
                "parameters": view.held,
                "optimized": view.optimized,
                "building": [call._asdict() for call in view.building],
                "step": [call._asdict() for call in view.stepping],
            }
            for view in found.views
        ],
    }


def _range(values: list[int]) -> str:
    least, most = min(values), max(values)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
