"""How long a step of each recipe takes, and so how many fit into the given minutes (`storyteller bench quality`)."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyteller_ds.bench.compared import Recipe
from storyteller_ds.bench.ordinary import train
from storyteller_ds.durable import write_atomically
from storyteller_ds.errors import UserError
from storyteller_ds.machine import machine
from storyteller_ds.records.run_folder import written_record
from storyteller_ds.untrusted import read_json

PACE = "pace.json"
_ROUNDS, _STEPS, _MINUTES, _WINDOW, _SLOW_S = 3, 60, 0.3, 10, 5.0
"""In each round every recipe trains _STEPS steps or _MINUTES minutes, and the first third does not count. The mean over
a window includes steps that do more work than their neighbors; the median over windows leaves out other work of the
machine. Steps slower than _SLOW_S are averages themselves and get only one round."""


@dataclass(frozen=True)
class Pace:
    """What was measured, and where."""

    seconds_per_step: Mapping[str, float]
    """For each recipe."""
    machine: Mapping[str, str]

    def steps(self, recipe: Recipe, minutes: float) -> int:
        """Number of steps that a recipe trains in this many minutes."""
        return max(1, round(60 * minutes / self.seconds_per_step[recipe.name]))


def find_pace(recipes: Sequence[Recipe], overrides: Sequence[str], folder: Path, log: Callable[[str], None]) -> Pace:
    """Read what the folder already has, and measure the other recipes in turn; the machine should be idle.

    Raises:
        InterruptedSafely: a signal asked for it; the same call continues.
        TrainingStopped: a run failed.
        UserError: the folder was measured with other overrides.
    """
    file = folder / PACE
    known: dict[str, Any] = {"overrides": [*overrides], "seconds_per_step": {}}
    if file.exists():
        known = read_json(file)
    if known["overrides"] != [*overrides]:
        raise UserError(f"{file} was measured with {known['overrides']}; choose another --output_dir")
    seconds = known["seconds_per_step"]
    missing = [recipe for recipe in recipes if recipe.name not in seconds]
    if missing:
        log(f"timing a step of {len(missing)} recipes, {_ROUNDS} times in turn; let this machine do nothing else")
        seconds |= _measured(missing, overrides, folder)
        known |= {"machine": machine(), "seconds_per_step": seconds}
        with written_record(file):
            write_atomically(file, json.dumps(known, indent=2) + "\n")
    return Pace(seconds, known["machine"])


def _measured(recipes: Sequence[Recipe], overrides: Sequence[str], folder: Path) -> dict[str, float]:
    windows: dict[str, list[float]] = {recipe.name: [] for recipe in recipes}
    slow: set[str] = set()
    for turn in range(_ROUNDS):
        for recipe in (recipe for recipe in recipes if recipe.name not in slow):
            short = [*recipe.overrides(_STEPS, recipe.rates()[0], turn), f"train.max_minutes={_MINUTES}"]
            every = ["train.log_every_steps=1", "train.eval_batches=1", *overrides]
            records = train(recipe, folder / "pace" / f"{recipe.name}-{turn}", [*short, *every])
            steps = [record["step_time_s"] for record in records if "step_time_s" in record]
            steps = steps[len(steps) // 3 :]
            windows[recipe.name] += [
                statistics.mean(steps[start : start + _WINDOW]) for start in range(0, len(steps), _WINDOW)
            ]
            if statistics.median(steps) > _SLOW_S:
                slow.add(recipe.name)
    return {name: statistics.median(each) for name, each in windows.items()}
