"""An ordinary run of a recipe, in its own process and folder (`storyteller bench quality`)."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storyteller_ds.bench.compared import Recipe
from storyteller_ds.config.load import flatten
from storyteller_ds.cores import usable_cores
from storyteller_ds.errors import (
    EXIT_INTERRUPTED,
    EXIT_KEYBOARD_INTERRUPT,
    InterruptedSafely,
    TrainingStopped,
    UserError,
)
from storyteller_ds.records.run_folder import CONFIG, METRICS
from storyteller_ds.records.trained_run import TrainedRun


def train(recipe: Recipe, folder: Path, overrides: Sequence[str], at_once: int = 1) -> list[dict[str, Any]]:
    """Train a recipe, unless the folder already has this run, finished.

    Args:
        recipe: the recipe to train.
        folder: the run folder.
        overrides: `section.field=value`.
        at_once: number of runs that share the cores of this machine.

    Returns:
        The records of metrics.jsonl.

    Raises:
        InterruptedSafely: a signal asked for it; the same call continues.
        TrainingStopped: the run failed.
        UserError: the folder has a run with other settings.
    """
    if (done := _finished(folder)) is not None:
        _check_same(folder, recipe, overrides)
        return done
    command = [sys.executable, "-m", "storyteller_ds", "train", "--quiet", "--config", recipe.config]
    threads = {} if at_once == 1 else {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))}
    code = subprocess.run(
        [*command, "--output_dir", str(folder), *recipe.changes, *overrides], check=False, env={**os.environ, **threads}
    ).returncode
    if code in (EXIT_INTERRUPTED, EXIT_KEYBOARD_INTERRUPT):
        raise InterruptedSafely(f"interrupted in {folder}; the same command goes on")
    if code or (done := _finished(folder)) is None:
        raise TrainingStopped(f"{folder} ended with exit code {code}; its error is above")
    return done


def _finished(folder: Path) -> list[dict[str, Any]] | None:
    """The records of a finished run; None if it is not finished."""
    if not (folder / METRICS).exists():
        return None
    records = TrainedRun(folder, 0).metrics
    return records if records and "final_val_bpb" in records[-1] else None


def _check_same(folder: Path, recipe: Recipe, overrides: Sequence[str]) -> None:
    """Refuse a finished run with other settings, which would be taken for this one."""
    now = flatten(recipe.load(overrides).run.model_dump(mode="json"))
    before = flatten(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["run"])
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{folder} has a run with {name}={before.get(name)}, now {value}; remove it, or choose another "
                "--output_dir"
            )
