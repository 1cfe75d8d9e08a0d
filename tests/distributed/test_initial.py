"""A run that starts from another run's weights gives the same numbers on every topology."""

from pathlib import Path

import pytest

from tests.support.distributed import TINY_RUN
from tests.support.runs import assert_same_numbers
from tests.support.warm_machine import MainJob

STEPS = 4
RUN = (
    *TINY_RUN,
    *(f"train.max_steps={STEPS}", "train.eval_batches=2", "schedule.warmup_steps=2", "tracking.wandb=disabled"),
    "--quiet",
)
TOPOLOGIES = {
    "zero0": (2, "zero0", "parallel.ep_size=2"),
    "zero2_offload": (2, "zero2_offload", "parallel.ep_size=2"),
    "zero3": (2, "zero3", "parallel.ep_size=1"),
    "zero3_autoep": (4, "zero3_autoep", "parallel.ep_size=2"),
}


@pytest.fixture(scope="module")
def source(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return main_job(tmp_path_factory.mktemp("source"), 2, "zero2", *RUN, "parallel.ep_size=2", "seed=3")


@pytest.fixture(scope="module")
def single(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    return main_job(tmp_path_factory.mktemp("single"), 1, None, *RUN, "--init_from", str(source))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_agrees_with_one_device(name, source, single, main_job, tmp_path):
    ranks, ds_config, ep_size = TOPOLOGIES[name]
    ours = main_job(tmp_path, ranks, ds_config, *RUN, ep_size, "--init_from", str(source))
    assert_same_numbers(ours, single, STEPS)
