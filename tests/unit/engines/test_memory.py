"""What a run that does not fit should lower: only what it has not lowered yet, most helpful first."""

import re

import pytest
import torch

from storyteller_ds.config import RunConfig, load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.engines.memory import what_to_lower
from tests.support.distributed import DS_CONFIGS

SHORTER = "a shorter data.sequence_length or a smaller model"


def to_lower(device: str, ranks: int, ds_config: str | None, *overrides: str, is_built: bool = True) -> list[str]:
    path = None if ds_config is None else DS_CONFIGS / f"{ds_config}.json"
    loaded = load_config("tiny_test", ("train.global_batch_size=48", *overrides), ds_config=path)
    plan = make_plan(loaded.run, ranks)
    line = what_to_lower(loaded.run, loaded.deepspeed, plan, torch.device(device), is_built)
    return line.removeprefix("lower what it needs, in this order: ").split(", ")


def test_one_device():
    assert to_lower("cpu", 1, None) == [
        "train.micro_batch_size=24 (now 48)",
        "model.activation_checkpointing=block",
        SHORTER,
    ]
    lowered = ("train.micro_batch_size=1", "model.activation_checkpointing=block")
    assert to_lower("cpu", 1, None, *lowered) == [SHORTER]
    assert to_lower("mps", 1, None, "train.micro_batch_size=3", lowered[1]) == [
        "train.micro_batch_size=1 (now 3)",
        SHORTER,
    ]


def test_a_card():
    fp32 = to_lower("cuda", 1, None, "precision.dtype=fp32")
    assert fp32[2:] == [
        "precision.dtype=auto",
        "--ds_config ds_configs/zero2_offload.json (moments in the host's memory)",
        SHORTER,
    ]
    assert "precision.dtype=auto" not in to_lower("cuda", 1, None, "precision.dtype=bf16")
    assert not any("--ds_config" in way for way in to_lower("cuda", 1, "zero2_offload"))
    assert any("zero3_offload" in way for way in to_lower("cuda", 2, "zero3"))


def test_several_ranks_can_share_the_weights():
    assert "--ds_config ds_configs/zero3.json (each rank holds a part of the weights)" in to_lower("cpu", 2, "zero2")
    assert not any("--ds_config" in way for way in to_lower("cpu", 2, "zero3"))


def test_no_batch_is_lowered_for_a_model_that_alone_does_not_fit():
    assert to_lower("cpu", 1, None, is_built=False) == ["a smaller model"]
    zero3 = "--ds_config ds_configs/zero3.json (each rank holds a part of the weights)"
    assert to_lower("cpu", 2, "zero2", is_built=False) == [zero3, "a smaller model"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("ds_config", [None, "zero2", "zero3"])
def test_what_it_says_can_be_typed(device, ds_config):
    for way in to_lower(device, 1, ds_config, "precision.dtype=fp32")[:-1]:
        name = re.sub(r" \(.*", "", way)
        if name.startswith("--ds_config"):
            assert (DS_CONFIGS.parent / name.split()[1]).is_file()
        else:
            assert isinstance(load_config("tiny_test", ("train.global_batch_size=48", name)).run, RunConfig)
