"""The gradient check at the start of a run passes if the gradients are right and stops the run if they are not."""

from pathlib import Path

import pytest

from storyteller_ds.errors import EXIT_TRAINING_STOPPED
from tests.support.distributed import TINY_RUN
from tests.support.warm_machine import Run, WarmMachine

# What a broken exchange, network or library could do to the values, on every rank.
FAULTS = {
    "none": "",
    "exchange": """
import storyteller_ds.engines.deepspeed.expert_parallel as broken
exchange = broken._exchange
broken._exchange = lambda rows, *a: exchange(rows, *a) * (1.001 if rows.is_floating_point() else 1)
""",
    "reduction": """
import torch.distributed as dist
import deepspeed.comm as comm
reduce = comm.all_reduce
comm.all_reduce = lambda tensor, *a, **k: (tensor.mul_(1.01), reduce(tensor, *a, **k))[1]
""",
}
SCRIPT = """
import sys, torch
{fault}
from storyteller_ds.cli.main import run_command
from storyteller_ds.cli.train import train
run_command(train)
"""


def train(machine: WarmMachine, tmp_path: Path, fault: str, ds_config: str, *arguments: str) -> Run:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(fault=FAULTS[fault]), encoding="utf-8")
    settings = (*TINY_RUN, "train.max_steps=1", "train.sample_prompts=[]", "tracking.wandb=disabled")
    settings += ("parallel.self_test=true", *arguments)
    run = machine.main_job(tmp_path / "run", 2, ds_config, *settings, script=script)
    run.wait(180)
    return run


@pytest.mark.parametrize(("ds_config", "dtype"), [("zero2", "fp32"), ("zero3_autoep", "fp32"), ("zero2", "bf16")])
def test_a_sound_machine_passes(ds_config: str, dtype: str, machine: WarmMachine, tmp_path: Path):
    run = train(machine, tmp_path, "none", ds_config, f"precision.dtype={dtype}")
    assert run.code == 0, run.stderr
    assert "self-test: gradients are those of one device" in run.stderr
    assert (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("fault", "ds_config"), [("exchange", "zero2"), ("reduction", "zero0")])
def test_a_wrong_gradient_refuses_to_train(fault: str, ds_config: str, machine: WarmMachine, tmp_path: Path):
    run = train(machine, tmp_path, fault, ds_config)
    assert run.code == EXIT_TRAINING_STOPPED
    assert "self-test: the " in run.stderr
    assert "this run is not started" in run.stderr
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text(), "no step was taken"
