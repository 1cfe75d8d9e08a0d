"""Twice the same, killed and continued, from two ranks to one and back: always the same run."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from storyteller_ds.certify.compare import relative_difference
from storyteller_ds.testing.distributed import TINY_RUN, run_command, start_command, train_command
from storyteller_ds.testing.runs import read_metrics, read_state

STEPS = 12
RUN = (
    *TINY_RUN,
    # Dropout, so that a random stream that is not put back shows.
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
TIMEOUT_S = 240


def command(folder: Path, ranks: int, ds_config: str | None, *arguments: str) -> list[str]:
    return train_command(ranks, ds_config, "--output_dir", str(folder), *RUN, *arguments)


def train(folder: Path, ranks: int, ds_config: str | None, *arguments: str) -> Path:
    outcome = run_command(command(folder, ranks, ds_config, *arguments), TIMEOUT_S)
    assert outcome.exit_code == 0, outcome.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("undisturbed"), 2, "zero2")


def assert_same_bits(a: Path, b: Path) -> None:
    assert read_metrics(a) == read_metrics(b)
    assert (a / "samples.md").read_text() == (b / "samples.md").read_text()
    ours, theirs = read_state(a, STEPS), read_state(b, STEPS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_the_same_command_twice_gives_the_same_bits(undisturbed: Path, tmp_path: Path):
    assert_same_bits(train(tmp_path, 2, "zero2"), undisturbed)


@pytest.mark.parametrize("debris", [False, True])
def test_killed_and_started_again_gives_the_same_bits(debris: bool, undisturbed: Path, tmp_path: Path):
    # A checkpoint and metrics lines beyond it, then the kill.
    process = start_command(command(tmp_path, 2, "zero2"))
    metrics = tmp_path / "metrics.jsonl"
    try:
        while not metrics.exists() or '"step": 6' not in metrics.read_text():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
            assert process.returncode is None, process.communicate()[1]
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.communicate(timeout=60)
    assert any(line["step"] > 4 for line in read_metrics(tmp_path))
    if debris:
        # A half-written line, and a checkpoint that was being written, as a kill leaves them.
        with metrics.open("a") as file:
            file.write('{"step": 7, "tok')
        unfinished = tmp_path / "checkpoints" / "step_00000008.tmp"
        unfinished.mkdir(exist_ok=True)
        (unfinished / "manifest.json").write_text("{")
    assert_same_bits(train(tmp_path, 2, "zero2"), undisturbed)


def continue_from(source: Path, folder: Path, step: int, ranks: int, ds_config: str | None) -> Path:
    shutil.copytree(source, folder)
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    return train(folder, ranks, ds_config, "model.dropout=0.0")


def test_from_two_ranks_to_one_and_back(tmp_path: Path):
    """Written by EP 2, continued by one process, written by that and continued by EP 2: still the same run."""
    whole = train(tmp_path / "whole", 2, "zero2", "model.dropout=0.0")
    one = continue_from(whole, tmp_path / "one", 4, 1, None)
    back = continue_from(one, tmp_path / "back", 8, 2, "zero2")
    for other in (one, back):
        for line, expected in zip(read_metrics(other), read_metrics(whole), strict=True):
            for field in ("train_loss", "grad_norm", "val_loss"):
                if field in expected:
                    assert line[field] == pytest.approx(expected[field], rel=1e-5), (field, line["step"])
        state, expected_state = read_state(other, STEPS), read_state(whole, STEPS)
        for name, tensor in expected_state.items():
            assert relative_difference(state[name], tensor) <= 1e-5, name
