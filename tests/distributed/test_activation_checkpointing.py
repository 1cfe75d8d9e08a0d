"""Expert parallelism: what ranks exchange and read; recomputing blocks does not change the results."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.cases import reports_of
from tests.support.distributed import TINY_RUN
from tests.support.runs import read_metrics, read_state
from tests.support.warm_machine import MainJob, WarmMachine

from .exchanges_worker import Case

WORKER = Path(__file__).with_name("exchanges_worker.py")
STEPS = 6
RUN = (
    *TINY_RUN,
    "model.dropout=0.1",
    "moe.noisy_gating=true",
    f"train.max_steps={STEPS}",
    "train.gradient_accumulation_steps=2",
    "schedule.kind=constant",
    "train.eval_every_steps=3",
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


def without_final_scores(run: Path) -> list[dict]:
    """The metrics without those that only the end of a run adds, since a run may also have ended half-way."""
    return [{k: v for k, v in line.items() if not k.startswith("final_")} for line in read_metrics(run)]


def assert_same_bits(run: Path, plain: Path) -> None:
    assert without_final_scores(run) == without_final_scores(plain)
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


CASES = [
    Case(mode, idle_rank, dropout)
    for mode in ("none", "selective", "block")
    for idle_rank, dropout in ((False, 0.0), (True, 0.0), (False, 0.2))
]
COMPILED = [
    Case("none", idle_rank, compiler=compiler) for compiler in ("eager", "aot_eager") for idle_rank in (False, True)
]
FORWARD, BACKWARD = 3, 2
"""All-to-alls of an MoE layer: counts, dispatch and combine; the gradients of the last two."""
LAYERS = 2


@pytest.fixture(scope="module")
def reports(machine: WarmMachine, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    """The reports of each rank, in the order of CASES and COMPILED, from one launch."""
    return reports_of(machine, WORKER, [*CASES, *COMPILED], tmp_path_factory.mktemp("exchanges"))


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_whole_blocks_compile_to_the_same_losses(case: Case, reports: list[list[dict]]):
    for of_rank in reports:
        ours = of_rank[len(CASES) + COMPILED.index(case)]
        assert ours["losses"] == pytest.approx(of_rank[CASES.index(case._replace(compiler=""))]["losses"], rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_repeats_its_exchanges_only_where_whole_blocks_run_again(case: Case, reports: list[list[dict]]):
    repeated = FORWARD if case.mode == "block" else 0
    for of_rank in reports:
        assert of_rank[CASES.index(case)]["sent"] == [LAYERS * (FORWARD + BACKWARD + repeated)] * 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_host_reads_once_in_a_layer(case: Case, reports: list[list[dict]]):
    assert [of_rank[CASES.index(case)]["reads"] for of_rank in reports] == [1, 1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_gives_the_same_bits_in_every_mode(case: Case, reports: list[list[dict]]):
    for rank, of_rank in enumerate(reports):
        ours, plain = of_rank[CASES.index(case)], of_rank[CASES.index(case._replace(mode="none"))]
        assert (ours["losses"], ours["digests"]) == (plain["losses"], plain["digests"])
        assert (ours["fewest_rows"] == 0) == (case.idle_rank and rank == 1)
