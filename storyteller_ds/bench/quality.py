"""The runs of `storyteller bench quality`: every recipe for the same time, on the same text and machine.

A recipe runs once with each of its learning rates, and with the best of them for the other seeds. Each run is an
ordinary one, in a process and a folder of its own. What is finished is not run again, so that a comparison which was
interrupted goes on.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from storyteller_ds.bench.compared import Recipe
from storyteller_ds.config.load import flatten
from storyteller_ds.errors import (
    EXIT_INTERRUPTED,
    EXIT_KEYBOARD_INTERRUPT,
    InterruptedSafely,
    TrainingStopped,
    UserError,
)
from storyteller_ds.training.run_folder import CONFIG, METRICS
from storyteller_ds.training.trained_run import TrainedRun


@dataclass(frozen=True)
class Run:
    """One run of a recipe."""

    lr: float
    seed: int
    bpb: float
    """Bits per byte at the end, on the whole validation text."""
    steps: int
    tokens: int
    """Tokens trained on."""
    seconds_per_step: float
    """Median."""


@dataclass(frozen=True)
class Outcome:
    """The runs of a recipe."""

    best: list[Run]
    """With its best rate, one for each seed."""
    others: list[Run]
    """With the other rates, seed 0."""

    @property
    def bpb(self) -> float:
        """Bits per byte, the mean over the seeds."""
        return statistics.mean(run.bpb for run in self.best)

    @property
    def rates(self) -> list[float]:
        """All that were tried, in order."""
        return sorted({self.best[0].lr, *(run.lr for run in self.others)})


@dataclass(frozen=True)
class Comparison:
    """What is run, and where."""

    recipes: Sequence[Recipe]
    minutes: float
    """Of training for each run."""
    seeds: int
    """Runs of each recipe with its best rate."""
    overrides: Sequence[str]
    """`section.field=value` of all runs, the text above all."""
    folder: Path
    """Of a folder for each run."""

    def run(self, log: Callable[[str], None]) -> dict[str, Outcome]:
        """Run what is left of it.

        Raises:
            InterruptedSafely: a signal has asked for it; run() goes on from there.
            TrainingStopped: a run has failed.
            UserError: a folder has a run with other settings.
        """
        return {recipe.name: self._compare_rates(recipe, log) for recipe in self.recipes}

    def _compare_rates(self, recipe: Recipe, log: Callable[[str], None]) -> Outcome:
        tried = [self._train(recipe, lr, 0, log) for lr in recipe.rates()]
        best = min(tried, key=lambda run: run.bpb)
        again = [self._train(recipe, best.lr, seed, log) for seed in range(1, self.seeds)]
        return Outcome([best, *again], [run for run in tried if run is not best])

    def _train(self, recipe: Recipe, lr: float, seed: int, log: Callable[[str], None]) -> Run:
        folder = self.folder / f"{recipe.name}-lr{lr:g}-seed{seed}"
        overrides = [*recipe.overrides(self.minutes, lr, seed), *self.overrides]
        if (done := _finished(folder, lr, seed)) is not None:
            _check_same(folder, recipe, overrides)
            return done
        command = [sys.executable, "-m", "storyteller_ds", "train", "--quiet", "--config", recipe.config]
        code = subprocess.run([*command, "--output_dir", str(folder), *overrides], check=False).returncode
        if code in (EXIT_INTERRUPTED, EXIT_KEYBOARD_INTERRUPT):
            raise InterruptedSafely(f"interrupted in {folder}; the same command goes on")
        if code or (done := _finished(folder, lr, seed)) is None:
            raise TrainingStopped(f"{folder} ended with exit code {code}; its error is above")
        log(f"{recipe.name}, lr {lr:g}, seed {seed}: {done.bpb:.4f} bits per byte, {done.steps} steps")
        return done


def _finished(folder: Path, lr: float, seed: int) -> Run | None:
    """What a run has come to; None if it is not over."""
    if not (folder / METRICS).exists():
        return None
    records = TrainedRun(folder, 0).metrics
    if not records or "final_val_bpb" not in records[-1]:
        return None
    steps = [record for record in records if "train_loss" in record]
    seconds = statistics.median(record["step_time_s"] for record in steps)
    return Run(lr, seed, records[-1]["final_val_bpb"], steps[-1]["step"], steps[-1]["tokens"], seconds)


def _check_same(folder: Path, recipe: Recipe, overrides: Sequence[str]) -> None:
    """A run with other settings would be taken for this one."""
    now = flatten(recipe.load(overrides).run.model_dump(mode="json"))
    before = flatten(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["run"])
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{folder} has a run with {name}={before.get(name)}, now {value}; remove it, or choose another "
                "--output_dir"
            )
