"""Run twice, killed and resumed, or moved from two ranks to one and back, it is always the same run."""

from pathlib import Path

import pytest
import torch

from tests.support.distributed import TINY_RUN
from tests.support.runs import assert_same_numbers, copy_run, read_metrics, read_state
from tests.support.warm_machine import MainJob, WarmMachine

STEPS = 12
RUN = (
    *TINY_RUN,
    # Dropout reveals a random stream that is not restored.
    "model.dropout=0.1",
    f"train.max_steps={STEPS}",
    "train.eval_batches=2",
    "train.eval_every_steps=4",
    "train.sample_every_steps=4",
    "train.sample_tokens=5",
    "checkpoint.every_steps=4",
    "schedule.warmup_steps=5",
    "tracking.wandb=disabled",
    "--quiet",
)


@pytest.fixture(scope="module")
def undisturbed(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return main_job(tmp_path_factory.mktemp("undisturbed"), 2, "zero2", *RUN)


def assert_same_bits(a: Path, b: Path) -> None:
    assert read_metrics(a) == read_metrics(b)
    assert (a / "samples.md").read_text() == (b / "samples.md").read_text()
    ours, theirs = read_state(a, STEPS), read_state(b, STEPS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_the_same_command_twice_gives_the_same_bits(main_job: MainJob, undisturbed: Path, tmp_path: Path):
    assert_same_bits(main_job(tmp_path, 2, "zero2", *RUN), undisturbed)


@pytest.mark.parametrize("debris", [False, True])
def test_killed_and_started_again_gives_the_same_bits(
    debris: bool, machine: WarmMachine, main_job: MainJob, undisturbed: Path, tmp_path: Path
):
    # Killed after a checkpoint and metrics lines beyond it.
    run = machine.main_job(tmp_path, 2, "zero2", *RUN)
    try:
        run.wait_for_step(6, tmp_path)
    finally:
        run.kill()
    if debris:
        # A half-written line and an unfinished checkpoint, as a kill leaves them.
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "tok')
        unfinished = tmp_path / "checkpoints" / "step_00000008.tmp"
        unfinished.mkdir(exist_ok=True)
        (unfinished / "manifest.json").write_text("{")
    assert_same_bits(main_job(tmp_path, 2, "zero2", *RUN), undisturbed)


def test_from_two_ranks_to_one_and_back(main_job: MainJob, tmp_path: Path):
    """A checkpoint of EP 2 continues on one process, and one of that process on EP 2, as the same run."""
    run = (*RUN, "model.dropout=0.0")
    whole = main_job(tmp_path / "whole", 2, "zero2", *run)
    one = main_job(copy_run(whole, tmp_path / "one", 4), 1, None, *run)
    back = main_job(copy_run(one, tmp_path / "back", 8), 2, "zero2", *run)
    for other in (one, back):
        assert_same_numbers(other, whole, STEPS, 1e-5, ("train_loss", "grad_norm", "val_loss"))
