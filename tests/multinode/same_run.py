"""The run that all multi-node tests train, and what "the same run" means."""

import shutil
from pathlib import Path

from tests.support.distributed import TINY_RUN, run_command, train_command
from tests.support.runs import assert_same_numbers, read_metrics

STEPS = 12
SAVED_EVERY = 4
TOLERANCE = 1e-5
TIMEOUT_S = 240
RUN = (
    *TINY_RUN,
    f"train.max_steps={STEPS}",
    "train.eval_batches=2",
    "train.eval_every_steps=4",
    "train.sample_tokens=5",
    f"checkpoint.every_steps={SAVED_EVERY}",
    "schedule.warmup_steps=5",
    "tracking.wandb=disabled",
    "--quiet",
)
COMPARED = ("train_loss", "grad_norm", "balance_loss", "z_loss", "router_entropy", "val_loss", "val_bpb")


def train_alone(folder: Path, *arguments: str) -> Path:
    """Train the run in one process, without a launcher and without DeepSpeed."""
    outcome = run_command(train_command(1, None, "--output_dir", str(folder), *RUN, *arguments), TIMEOUT_S)
    assert outcome.exit_code == 0, outcome.stderr
    return folder


def copy_up_to(source: Path, folder: Path, step: int) -> Path:
    """Copy a run folder as it would be if the run had ended shortly after saving `step`."""
    shutil.copytree(source, folder)
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    return folder


def last_step(folder: Path) -> int:
    """The last step in the records of a run; 0 before the first."""
    metrics = folder / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(folder)), default=0) if metrics.exists() else 0


def assert_same_run(ours: Path, reference: Path) -> None:
    """Compare the losses and gradient norms of every step, and weights and moments after the last one."""
    assert last_step(ours) == STEPS
    for line, expected in zip(read_metrics(ours), read_metrics(reference), strict=True):
        assert line.keys() == expected.keys()
    assert_same_numbers(ours, reference, STEPS, TOLERANCE, COMPARED)
