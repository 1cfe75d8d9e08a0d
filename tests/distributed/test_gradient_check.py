"""The check at the start of a run: silent where the gradients are right, and no training where they are not."""

import sys
from pathlib import Path

import pytest

from storyteller_ds.parallel.world import free_port
from storyteller_ds.testing.distributed import DS_CONFIGS, TINY_RUN, run_command

# What a broken exchange, network or library could do to the numbers, on every rank.
FAULTS = {
    "none": "",
    "exchange": """
import storyteller_ds.parallel.expert_parallel as broken
exchange = broken._exchange
broken._exchange = lambda rows, *a: exchange(rows, *a) * (1.001 if not torch.is_grad_enabled() else 1.0)
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


def start(tmp_path: Path, fault: str, ds_config: str, *arguments: str):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(fault=FAULTS[fault]), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    return run_command(
        [
            *(*launch, str(script), "--ds_config", str(DS_CONFIGS / f"{ds_config}.json")),
            *("--output_dir", str(tmp_path / "run"), *TINY_RUN, "train.max_steps=1", "tracking.wandb=disabled"),
            *("parallel.self_test=true", *arguments),
        ],
        180,
    )


@pytest.mark.parametrize(("ds_config", "dtype"), [("zero2", "fp32"), ("zero3_autoep", "fp32"), ("zero2", "bf16")])
def test_a_sound_machine_passes(ds_config: str, dtype: str, tmp_path: Path):
    outcome = start(tmp_path, "none", ds_config, f"precision.dtype={dtype}")
    assert outcome.exit_code == 0, outcome.stderr
    assert "self-test: gradients are those of one device" in outcome.stderr
    assert (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("fault", "ds_config"), [("exchange", "zero2"), ("reduction", "zero0")])
def test_a_wrong_gradient_refuses_to_train(fault: str, ds_config: str, tmp_path: Path):
    outcome = start(tmp_path, fault, ds_config)
    assert outcome.exit_code != 0
    assert "self-test: the " in outcome.stderr
    assert "this run is not started" in outcome.stderr
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text(), "no step was taken"
