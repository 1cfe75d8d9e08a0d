"""Each tensor of a checkpoint is written by one rank, with the bits that all ranks agree on."""

from pathlib import Path

import pytest

from tests.support.distributed import TINY_RUN
from tests.support.warm_machine import WarmMachine

SCRIPT = """
import torch
import storyteller_ds.checkpoint.write as writing
from storyteller_ds.cli.main import run_command
from storyteller_ds.cli.train import train

take_rank_state = writing.take_rank_state

def checked(engine, memory):
    whole = {(kind, name): tensor.clone() for kind, name, tensor in engine.named_state()}
    state = take_rank_state(engine, memory)
    mine = {("weight", name): tensor for name, tensor in state.parts["weights"].items()}
    mine |= {tuple(name.split("/", 1)): tensor for name, tensor in state.parts["optimizer"].items()}
    assert mine.keys() <= whole.keys()
    for key, tensor in mine.items():
        assert torch.equal(tensor, whole[key]), key
    owners = engine.world.all_reduce_sum(torch.tensor([int(key in mine) for key in whole]))
    assert owners.eq(1).all(), [key for key, count in zip(whole, owners) if count != 1]
    sizes = torch.zeros(engine.world.size)
    sizes[engine.world.rank] = sum(tensor.nbytes for tensor in mine.values())
    largest = max(tensor.nbytes for tensor in whole.values())
    sizes = engine.world.all_reduce_sum(sizes)
    assert sizes.max() - sizes.min() <= 2 * largest, sizes
    assert sizes.sum() == state.total_bytes
    if engine.world.is_main:
        print("checked", len(whole), flush=True)
    return state

writing.take_rank_state = checked
run_command(train)
"""
TOPOLOGIES = {
    "zero0": (2, "zero0", "parallel.ep_size=2"),
    "zero1_ep1": (2, "zero1", "parallel.ep_size=1"),
    "zero2": (2, "zero2", "parallel.ep_size=2"),
    "zero2_two_expert_groups": (4, "zero2", "parallel.ep_size=2"),
    "zero2_bf16": (2, "zero2", "precision.dtype=bf16"),
    "zero2_muon": (2, "zero2", "optimizer.kind=muon"),
    "zero2_offload": (2, "zero2_offload", "parallel.ep_size=2"),
    "zero3": (2, "zero3", "parallel.ep_size=1"),
    "zero3_autoep": (2, "zero3_autoep", "parallel.ep_size=2"),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_tensor_is_written_by_one_rank_as_all_would_gather_it(name: str, machine: WarmMachine, tmp_path: Path):
    ranks, ds_config, setting = TOPOLOGIES[name]
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    settings = (*TINY_RUN, "train.max_steps=3", "train.sample_prompts=[]", "tracking.wandb=disabled", setting)
    run = machine.main_job(tmp_path / "run", ranks, ds_config, *settings, "checkpoint.every_steps=2", script=script)
    assert run.wait(240) == 0, run.stderr
    assert run.stdout.count("checked ") == 2, "one save while training goes on, one at the end"
