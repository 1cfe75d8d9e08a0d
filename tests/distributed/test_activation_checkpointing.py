"""Recomputed blocks under expert parallelism: all ranks repeat the same exchanges, and nothing changes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from storyteller_ds.testing.distributed import TINY_RUN
from storyteller_ds.testing.runs import read_metrics, read_state
from storyteller_ds.testing.warm_machine import MainJob

STEPS = 6
RUN = (
    *TINY_RUN,
    "model.dropout=0.1",
    "moe.noisy_gating=true",
    f"train.max_steps={STEPS}",
    "train.gradient_accumulation_steps=2",
    "schedule.kind=constant",
    "train.eval_every_steps=3",
    "train.eval_batches=null",  # the last validation is always of the whole text
    "train.sample_tokens=5",
    "parallel.ep_size=2",
    "tracking.wandb=disabled",
    "--quiet",
)


@pytest.fixture(scope="module")
def train(main_job: MainJob) -> Callable[..., Path]:
    def run(folder: Path, mode: str, *arguments: str) -> Path:
        return main_job(folder, 2, "zero2", *RUN, f"model.activation_checkpointing={mode}", *arguments)

    return run


@pytest.fixture(scope="module")
def plain(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("none"), "none")


def assert_same_bits(run: Path, plain: Path) -> None:
    assert read_metrics(run) == read_metrics(plain)
    ours, reference = read_state(run, STEPS), read_state(plain, STEPS)
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        assert torch.equal(ours[name], tensor), name


def test_two_ranks_that_share_experts_give_the_same_bits(train: Callable[..., Path], plain: Path, tmp_path: Path):
    assert_same_bits(train(tmp_path, "block"), plain)


def test_also_selectively_and_when_a_run_changes_its_mind_half_way(
    train: Callable[..., Path], plain: Path, tmp_path: Path
):
    train(tmp_path, "block", f"train.max_steps={STEPS // 2}")
    assert_same_bits(train(tmp_path, "selective"), plain)
