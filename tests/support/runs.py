"""Reads what a run has written."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from storyteller_ds.certify.compare import numbers
from storyteller_ds.checkpoint.names import step_folder_name
from storyteller_ds.checkpoint.read import open_checkpoint, step_folders
from storyteller_ds.engines.differences import differences, largest

MEASURED = (
    *("tokens_per_s", "tokens_per_s_per_device", "step_time_s", "data_wait", "forward_s", "backward_s", "optimizer_s"),
    *("mfu", "memory_bytes", "memory_peak_bytes", "host_memory_bytes", "cpu_percent"),
)
"""Fields of metrics.jsonl that depend on the machine, not on the run."""


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


FIELDS = ("train_loss", "grad_norm", "balance_loss", "z_loss", "router_entropy", "val_loss", "val_bpb")


def assert_same_numbers(
    ours: Path,
    reference: Path,
    step: int,
    tolerance: float = 1e-5,
    fields: Sequence[str] = FIELDS,
    moments: bool = True,
) -> None:
    """Assert that two runs agree up to rounding: these fields of every record, and weights and moments of a step.

    Raises:
        AssertionError: they do not; the message names the number that differs most.
    """

    def every(folder: Path) -> dict[str, Tensor]:
        state = read_state(folder, step).items()
        weights = {name: tensor for name, tensor in state if moments or not name.startswith("exp_avg")}
        return numbers(read_metrics(folder), fields) | weights

    name, difference = largest(differences(every(ours), every(reference)))
    assert difference <= tolerance, f"{name} differs by {difference:.1e}"


def copy_run(source: Path, folder: Path, up_to_step: int) -> Path:
    """Copy a run folder without the checkpoints after a step; returns the copy."""
    shutil.copytree(source, folder)
    for later in step_folders(folder / "checkpoints", after=up_to_step):
        shutil.rmtree(later)
    return folder
