"""The results of a sweep's trials: sweep.json and the table."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from storyteller_ds.config.files import parse_yaml
from storyteller_ds.config.load import DEFAULT_PRESET
from storyteller_ds.sweep.space import Space, Values


@dataclass(frozen=True)
class Result:
    """A finished trial."""

    folder: Path
    """Its run folder."""
    values: Values
    bpb: float | None
    """Bits per byte at its end, on the whole validation text; None if it failed."""
    steps: int | None = None
    """Optimizer steps."""
    seconds: float = 0.0
    """Wall time including preparation and validation, summed over all processes that worked on it (s)."""
    reason: str | None = None
    """Why it failed."""

    def line(self) -> str:
        """Values and outcome."""
        score = f"{self.bpb:.4f} bits per byte, {self.steps} steps" if self.bpb else f"failed: {self.reason}"
        return f"{shown(self.values)}: {score}, {self.seconds / 60:.1f} min"


def shown(values: Values) -> str:
    """Values as typed."""
    return " ".join(f"{field}={text}" for field, text in values.items())


def best_first(results: Sequence[Result]) -> list[Result]:
    """By bits per byte, failed trials last; equal ones in the order in which they ran."""
    return sorted(results, key=lambda result: math.inf if result.bpb is None else result.bpb)


def table(results: Sequence[Result]) -> Table:
    """A row for each trial, the best first."""
    rows = Table(box=box.MARKDOWN)
    for heading in (*results[0].values, "bits per byte", "steps", "minutes", "run"):
        rows.add_column(heading, justify="left" if heading == "run" else "right")
    for each in best_first(results):
        score = ("failed", "-") if each.bpb is None else (f"{each.bpb:.4f}", str(each.steps))
        rows.add_row(*each.values.values(), *score, f"{each.seconds / 60:.1f}", each.folder.name)
    return rows


def as_json(space: Space, results: Sequence[Result], best: str | None) -> str:
    """All trials in the order in which they ran, and the command for the best."""
    document = {
        "config": space.config or DEFAULT_PRESET,
        "overrides": space.overrides,
        "trials": [_trial_json(each) for each in results],
        "best": best,
    }
    return json.dumps(document, indent=2) + "\n"


def best_command(space: Space, results: Sequence[Result]) -> str | None:
    """The command for a run with the best values, in a separate folder beside the trials; None if all failed."""
    best = best_first(results)[0]
    if best.bpb is None:
        return None
    config = space.config or DEFAULT_PRESET
    where = ["--output_dir", str(best.folder.with_name("best"))]
    return shlex.join(["storyteller", "train", "--config", config, *where, *space.arguments(best.values)])


def _trial_json(result: Result) -> Mapping[str, Any]:
    return {
        "values": {field: parse_yaml(text, field) for field, text in result.values.items()},
        "val_bpb": result.bpb,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "reason": result.reason,
        "run": result.folder.name,
    }
