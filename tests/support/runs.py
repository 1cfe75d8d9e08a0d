"""Reading back what a run has written."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from storyteller_ds.checkpoint.names import step_folder_name
from storyteller_ds.checkpoint.read import open_checkpoint, step_folders

MEASURED = ("tokens_per_s", "step_time_s", "memory_peak_bytes")
"""Fields of metrics.jsonl that depend on the machine and not on the run."""


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the measured fields."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def read_state(run_folder: Path, step: int) -> dict[str, Tensor]:
    """All weights and moments of a step."""
    checkpoint = open_checkpoint(run_folder / "checkpoints" / step_folder_name(step))
    checkpoint.verify()
    tensors: dict[str, Tensor] = {}
    for part in ("weights", "optimizer"):
        files = checkpoint.open_tensors(part)
        tensors |= {name: files[name] for name in files}
    return tensors


def copy_run(source: Path, folder: Path, up_to_step: int) -> Path:
    """A copy of a run folder without the checkpoints after a step; gives the copy."""
    shutil.copytree(source, folder)
    for later in step_folders(folder / "checkpoints", after=up_to_step):
        shutil.rmtree(later)
    return folder
