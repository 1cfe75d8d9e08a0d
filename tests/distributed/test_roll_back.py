"""The main job with bad gradients on one rank: it skips steps, rolls back, gives up, and rolls back exactly."""

import json
from pathlib import Path

import pytest

from storyteller_ds.errors import EXIT_TRAINING_STOPPED
from tests.support.distributed import TINY_RUN
from tests.support.runs import read_metrics, read_state
from tests.support.warm_machine import Run, WarmMachine

STEPS = 10
SCRIPT = """
import dataclasses, json, os, sys
import torch
import storyteller_ds.checkpoint.resume as resuming
from storyteller_ds.cli.main import run_command
from storyteller_ds.cli.train import train
from storyteller_ds.engines.deepspeed.engine import DeepSpeedEngine

told = json.loads({told!r})
begin_step, restore = DeepSpeedEngine.begin_step, resuming.restore
calls = 0

def faulty_step(self, *args):
    global calls
    calls += 1
    if calls in told["bad_steps"] and os.environ["RANK"] == "1":
        hook = self.decoder.blocks[1].attention.parameters().__next__().register_hook(lambda g: g * float("nan"))
        try:
            return begin_step(self, *args)
        finally:
            hook.remove()
    return begin_step(self, *args)

DeepSpeedEngine.begin_step = faulty_step
resuming.restore = lambda *args: dataclasses.replace(restore(*args), **told["state"])
run_command(train)
"""


def train(machine: WarmMachine, folder: Path, ds_config: str, *arguments: str, bad_steps=(), state=None) -> Run:
    """Train ten steps on two ranks, with a checkpoint every four; `state` replaces parts of the resumed state."""
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(SCRIPT.format(told=json.dumps({"bad_steps": list(bad_steps), "state": state or {}})))
    run = (*TINY_RUN, f"train.max_steps={STEPS}", "train.eval_batches=1", "train.sample_tokens=1")
    run += ("checkpoint.every_steps=4", "train.max_bad_steps=2", "train.max_rollbacks=1", "tracking.wandb=disabled")
    started = machine.main_job(folder / "run", 2, ds_config, *run, *arguments, script=script)
    started.wait(240)
    return started


def lines(folder: Path) -> list[dict]:
    return [line for line in read_metrics(folder / "run") if "train_loss" in line]


@pytest.mark.parametrize("ds_config", ["zero0", "zero3"])
def test_it_goes_back_and_on_behind_the_bad_samples(ds_config: str, machine: WarmMachine, tmp_path: Path):
    run = train(machine, tmp_path / "a", ds_config, bad_steps=[2, 6, 7])
    assert run.code == 0, run.stderr
    assert "the gradient of step 2 is not finite; the step is skipped" in run.stderr
    assert "2 in a row; back to step 4, continuing after the samples seen since" in run.stderr
    ours = lines(tmp_path / "a")
    assert [line["step"] for line in ours] == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10]
    assert [line["undone_steps"] for line in ours] == [0] * 7 + [3] * 6
    assert [line["bad_steps"] for line in ours] == [0, 1, 1, 1, 1, 2, 3] + [3] * 6
    assert [line["grad_norm"] is None for line in ours] == [number in (2, 6, 7) for number in range(1, 14)]

    # A new process that starts from the checkpoint and is told where to continue does the same.
    batch = 8 * 7
    known = {"samples": batch, "tokens": batch * 64, "bad_steps": 3, "rollbacks": 1, "undone_steps": 3}
    start = str(tmp_path / "a" / "run" / "checkpoints" / "step_00000004")
    run = train(machine, tmp_path / "b", ds_config, "--resume", start, state=known)
    assert run.code == 0, run.stderr
    assert lines(tmp_path / "b") == ours[7:]
    expected = read_state(tmp_path / "b" / "run", STEPS)
    for name, tensor in read_state(tmp_path / "a" / "run", STEPS).items():
        assert tensor.equal(expected[name]), name


def test_after_the_last_rollback_it_gives_up_with_one_line(machine: WarmMachine, tmp_path: Path):
    run = train(machine, tmp_path / "a", "zero2", "--quiet", bad_steps=range(6, 99))
    assert run.code == EXIT_TRAINING_STOPPED
    reasons = [line for line in run.stderr.splitlines() if "training stops" in line]
    assert len(reasons) == 1
    assert "not finite, 2 in a row; after 1 rollback(s) training stops: lower optimizer.lr" in reasons[0]
    assert [path.name for path in (tmp_path / "a" / "run" / "checkpoints").iterdir()] == ["step_00000004"]
    read_state(tmp_path / "a" / "run", 4)
