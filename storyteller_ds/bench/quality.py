"""The runs of `storyteller bench quality`: every recipe for the same time, on the same text and machine.

First a step of each recipe is timed, all of them in turn (`pace.py`), which turns the minutes into a number of steps.
So other work on the machine changes no result, runs may share it, and the same command gives the same numbers again.
A recipe runs once with each of its learning rates, and then with the best of them for the other seeds. Finished runs
are not repeated, so an interrupted comparison can be continued.
"""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from storyteller_ds.bench.compared import Recipe
from storyteller_ds.bench.finished import FinishedRuns, Run
from storyteller_ds.bench.ordinary import train
from storyteller_ds.bench.pace import Pace, find_pace
from storyteller_ds.bench.remaining import Remaining
from storyteller_ds.errors import InterruptedSafely

RUNS = "runs.json"


@dataclass(frozen=True)
class Outcome:
    """The runs of a recipe."""

    best: list[Run]
    """With the best learning rate, one run for each seed."""
    others: list[Run]
    """With the other learning rates, seed 0."""

    @property
    def bpb(self) -> float:
        """Bits per byte, mean over the seeds."""
        return statistics.mean(run.bpb for run in self.best)

    @property
    def rates(self) -> list[float]:
        """All learning rates that were tried, in order."""
        return sorted({self.best[0].lr, *(run.lr for run in self.others)})


@dataclass(frozen=True)
class Comparison:
    """What to run, and where."""

    recipes: Sequence[Recipe]
    minutes: float
    """Training time of each run."""
    seeds: int
    """Number of runs of each recipe with its best learning rate."""
    overrides: Sequence[str]
    """`section.field=value` for all runs, above all the text."""
    folder: Path
    """Contains a folder for each run."""
    tokens: int | None = None
    """Training tokens of each run, instead of the minutes."""
    at_once: int = 1
    """Number of runs that share this machine, each with its part of the cores."""

    def pace(self, log: Callable[[str], None]) -> Pace:
        """How long a step of each recipe takes, measured if the folder does not have it yet.

        Raises:
            As `run`.
        """
        return find_pace(self.recipes, self.overrides, self.folder, log)

    def steps(self, recipe: Recipe, pace: Pace) -> int:
        """Number of steps that a run of a recipe trains."""
        if self.tokens is None:
            return pace.steps(recipe, self.minutes)
        run = recipe.load(self.overrides).run
        return -(-self.tokens // (run.train.global_batch_size * run.data.sequence_length))

    @property
    def runs(self) -> dict[str, int]:
        """The number of runs of each recipe."""
        return {recipe.name: len(recipe.factors) + self.seeds - 1 for recipe in self.recipes}

    def name_of(self, recipe: Recipe, lr: float, seed: int) -> str:
        """The name of a run and of its folder."""
        return f"{recipe.name}-lr{lr:g}-seed{seed}"

    def run(self, log: Callable[[str], None]) -> dict[str, Outcome]:
        """Run what is not finished yet.

        Raises:
            InterruptedSafely: a signal asked for it; run() continues from there.
            TrainingStopped: a run failed.
            UserError: a folder has a run with other settings.
        """
        pace, finished, ended = self.pace(log), FinishedRuns(self.folder / RUNS), threading.Event()
        steps_of = {each.name: self.steps(each, pace) for each in self.recipes}
        planned_s = {name: steps * pace.seconds_per_step[name] for name, steps in steps_of.items()}
        remaining = Remaining(planned_s, self.runs, self.at_once)

        def one(recipe: Recipe, lr: float, seed: int) -> Run:
            if ended.is_set():
                raise InterruptedSafely("another run of the comparison has ended it")
            name = self.name_of(recipe, lr, seed)
            overrides = [*recipe.overrides(steps_of[recipe.name], lr, seed), *self.overrides]
            config = recipe.load(overrides).run
            began = None
            if (done := finished.find(name, config)) is None:
                began = time.monotonic()
                records = train(recipe, self.folder / name, overrides, self.at_once)
                last = records[-1]
                done = Run(lr, seed, last["final_val_bpb"], last["step"], last["tokens"])
                finished.add(name, config, done)
            state = remaining.finish(recipe.name, None if began is None else time.monotonic() - began)
            log(f"[{state}] {recipe.name}, lr {lr:g}, seed {seed}: {done.bpb:.4f} bits per byte, {done.steps} steps")
            return done

        def all_of(recipe: Recipe) -> Outcome:
            try:
                tried = [one(recipe, lr, 0) for lr in recipe.rates()]
                best = min(tried, key=lambda run: run.bpb)
                again = [one(recipe, best.lr, seed) for seed in range(1, self.seeds)]
            except BaseException:
                ended.set()
                raise
            return Outcome([best, *again], [run for run in tried if run is not best])

        with ThreadPoolExecutor(self.at_once) as pool:
            names = [recipe.name for recipe in self.recipes]
            return dict(zip(names, pool.map(all_of, self.recipes), strict=True))
