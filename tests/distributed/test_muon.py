"""Muon gives the same results on one device and where ZeRO partitions its matrices, and resumes across both."""

from pathlib import Path

import pytest

from storyteller_ds.engines.differences import relative_difference
from tests.support.distributed import TINY_RUN
from tests.support.runs import read_metrics, read_state
from tests.support.warm_machine import MainJob

STEPS = 12
TOLERANCE = 1e-5
HALF_PRECISION_TOLERANCE = 2e-3
RUN = (
    *TINY_RUN,
    *("optimizer.kind=muon", "optimizer.lr=3e-3"),
    # Settings that accompany Muon in the presets.
    *(
        "optimizer.embedding_lr_ratio=5",
        "optimizer.expert_period=2",
        "model.tie_embeddings=false",
        "model.qk_norm=true",
        "data.document_mask=true",
    ),
    # Sizes of which no power of two is a multiple, so that partitions end inside matrices.
    *("model.hidden_size=72", "model.num_layers=3", "model.intermediate_size=50"),
    *(f"train.max_steps={STEPS}", "train.eval_batches=2", "train.eval_every_steps=6", "train.sample_tokens=2"),
    *("checkpoint.every_steps=6", "schedule.warmup_steps=3", "tracking.wandb=disabled", "--quiet"),
)
TOPOLOGIES = {
    "zero0": (2, "zero0", "parallel.ep_size=2"),
    "zero1_ep1": (2, "zero1", "parallel.ep_size=1"),
    "zero2_ep2": (2, "zero2", "parallel.ep_size=2"),
    "zero2_two_expert_groups": (4, "zero2", "parallel.ep_size=2"),
    "zero2_offload": (2, "zero2_offload", "parallel.ep_size=2"),
    "zero3": (2, "zero3", "parallel.ep_size=1"),
    "zero3_offload": (2, "zero3_offload", "parallel.ep_size=1"),
    "zero3_autoep": (4, "zero3_autoep", "parallel.ep_size=2"),
}


@pytest.fixture(scope="module")
def single(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return main_job(tmp_path_factory.mktemp("single"), 1, None, *RUN)


def assert_same_run(ours: Path, reference: Path) -> None:
    expected = {line["step"]: line for line in read_metrics(reference) if "train_loss" in line}
    lines = [line for line in read_metrics(ours) if "train_loss" in line]
    assert lines[-1]["step"] == STEPS
    for line in lines:
        for field in ("train_loss", "grad_norm"):
            assert line[field] == pytest.approx(expected[line["step"]][field], rel=TOLERANCE), (field, line["step"])
    states = read_state(ours, STEPS), read_state(reference, STEPS)
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[1].items():
        assert relative_difference(states[0][name], tensor) <= TOLERANCE, name


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_agrees_with_one_device(name: str, single: Path, main_job: MainJob, tmp_path: Path):
    ranks, ds_config, ep_size = TOPOLOGIES[name]
    assert_same_run(main_job(tmp_path, ranks, ds_config, *RUN, ep_size), single)


def test_in_fp16_the_losses_agree_to_its_precision(single: Path, main_job: MainJob, tmp_path: Path):
    expected = {line["step"]: line["train_loss"] for line in read_metrics(single) if "train_loss" in line}
    lines = read_metrics(main_job(tmp_path, 2, "zero2_fp16", *RUN, "parallel.ep_size=2"))
    found = {line["step"]: line["train_loss"] for line in lines if "train_loss" in line}
    assert found == pytest.approx(expected, rel=HALF_PRECISION_TOLERANCE)


def test_a_checkpoint_continues_on_another_topology(single: Path, main_job: MainJob, tmp_path: Path):
    half = single / "checkpoints" / "step_00000006"
    assert_same_run(main_job(tmp_path, 2, "zero1", *RUN, "--resume", str(half)), single)


def test_it_is_not_adamw(single: Path, main_job: MainJob, tmp_path: Path):
    """Control for the comparisons: Muon differs from AdamW, and keeps no second moment for its matrices."""
    adamw = main_job(tmp_path, 1, None, *RUN, "optimizer.kind=adamw")
    hidden = "blocks.0.ffn.experts.gate_up_proj"
    ours, theirs = read_state(single, STEPS), read_state(adamw, STEPS)
    assert relative_difference(ours[hidden], theirs[hidden]) > 1e-2
    assert f"exp_avg_sq/{hidden}" in theirs
    assert f"exp_avg_sq/{hidden}" not in ours
    assert "exp_avg_sq/blocks.0.ffn.router.weight" in ours, "the router is AdamW's"
