"""The runs of `storyteller bench quality`: every recipe for the same time, on the same text and machine.

A recipe runs once with each of its learning rates, and with the best of them for the other seeds. Each run is an
ordinary one, in a process and a folder of its own. What is finished is not run again, so that a comparison which was
interrupted goes on.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from storyteller_ds.bench.compared import Recipe
from storyteller_ds.errors import EXIT_INTERRUPTED, EXIT_KEYBOARD_INTERRUPT, InterruptedSafely, TrainingStopped
from storyteller_ds.training.run_folder import METRICS
from storyteller_ds.training.trained_run import TrainedRun

_INTERRUPTED = (EXIT_INTERRUPTED, EXIT_KEYBOARD_INTERRUPT)


@dataclass(frozen=True)
class Run:
    """One run of a recipe."""

    recipe: str
    lr: float
    seed: int
    bpb: float
    """Bits per byte at the end, on the whole validation text."""
    steps: int
    tokens: int
    """Tokens trained on."""
    seconds_per_step: float
    """Median."""


class Comparison:
    """What is run, and where.

    Args:
        recipes: compared.
        minutes: of training for each run.
        seeds: runs of each recipe with its best rate.
        overrides: `section.field=value` of all runs, the text above all.
        folder: a folder for each run.
    """

    def __init__(
        self, recipes: Sequence[Recipe], minutes: float, seeds: int, overrides: Sequence[str], folder: Path
    ) -> None:
        self.recipes, self.minutes, self.seeds = recipes, minutes, seeds
        self.overrides, self.folder = overrides, folder

    def run(self, log: Callable[[str], None]) -> dict[str, list[Run]]:
        """The runs of each recipe: first those with its best rate, one for each seed, then seed 0 with the others.

        Raises:
            InterruptedSafely: a signal has asked for it; run() goes on from there.
            TrainingStopped: a run has failed.
        """
        found = {}
        for recipe in self.recipes:
            tried = [self._train(recipe, lr, 0, log) for lr in recipe.rates()]
            best = min(tried, key=lambda run: run.bpb)
            again = [self._train(recipe, best.lr, seed, log) for seed in range(1, self.seeds)]
            found[recipe.name] = [best, *again, *(run for run in tried if run is not best)]
        return found

    def _train(self, recipe: Recipe, lr: float, seed: int, log: Callable[[str], None]) -> Run:
        folder = self.folder / f"{recipe.name}-lr{lr:g}-seed{seed}"
        if (run := _finished(recipe.name, lr, seed, folder)) is not None:
            return run
        overrides = [*recipe.overrides(self.minutes, lr, seed), *self.overrides]
        command = [sys.executable, "-m", "storyteller_ds", "train", "--quiet", "--config", recipe.config]
        code = subprocess.run([*command, "--output_dir", str(folder), *overrides], check=False).returncode
        run = _finished(recipe.name, lr, seed, folder)
        if run is not None:
            log(f"{recipe.name}, lr {lr:g}, seed {seed}: {run.bpb:.4f} bits per byte, {run.steps} steps")
            return run
        if code in _INTERRUPTED:
            raise InterruptedSafely(f"interrupted in {folder.name}; the same command goes on")
        raise TrainingStopped(f"{folder.name} ended with exit code {code}, and its error is above")


def _finished(recipe: str, lr: float, seed: int, folder: Path) -> Run | None:
    """What a run has come to; None if it is not over."""
    if not (folder / METRICS).exists():
        return None
    records = TrainedRun(folder, 0).metrics
    steps = [record for record in records if "train_loss" in record]
    if not records or "final_val_bpb" not in records[-1]:
        return None
    times = sorted(record["step_time_s"] for record in steps)
    return Run(
        recipe, lr, seed, records[-1]["final_val_bpb"], steps[-1]["step"], steps[-1]["tokens"], times[len(times) // 2]
    )
