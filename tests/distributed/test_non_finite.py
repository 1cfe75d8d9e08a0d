"""A non-finite loss or gradient on one rank changes no weight on any rank, under every ZeRO stage."""

from pathlib import Path

import pytest

from tests.support.cases import reports_of
from tests.support.warm_machine import WarmMachine

from .non_finite_worker import Case

WORKER = Path(__file__).with_name("non_finite_worker.py")
BF16, FP16 = ("precision.dtype=bf16",), ("precision.dtype=fp16",)
GRADIENT = (
    Case("zero0", "nan"),
    Case("zero0", "expert"),
    Case("zero1", "inf"),
    Case("zero1", "nan", True, BF16),
    Case("zero2", "expert"),
    Case("zero2", "nan", True, ("optimizer.grad_clip_norm=0",)),
    Case("zero2", "nan", True, ("optimizer.kind=muon",)),
    Case("zero2_offload", "nan"),
    Case("zero3", "nan"),
    Case("zero3", "nan", True, BF16),
    Case("zero3_offload", "inf"),
    Case("zero3_autoep", "expert"),
)
LOSS = (
    *(Case(name, "loss") for name in ("zero0", "zero1", "zero2", "zero3", "zero3_offload")),
    Case("zero2", "loss", True, BF16),
    Case("zero2_fp16", "loss", True, FP16),
)
UNGUARDED = (Case("zero0", "nan", False), Case("zero2", "nan", False, BF16))
CASES = (*GRADIENT, *LOSS, *UNGUARDED)


@pytest.fixture(scope="module")
def reports(machine: WarmMachine, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    """The reports of each rank, in the order of CASES, from one launch."""
    return reports_of(machine, WORKER, CASES, tmp_path_factory.mktemp("non_finite"))


@pytest.mark.parametrize("case", [*GRADIENT, *LOSS], ids=str)
def test_the_step_is_skipped_by_all_and_forgotten(case: Case, reports: list[list[dict]]):
    ours, others = (of_rank[CASES.index(case)] for of_rank in reports)
    assert ours == others
    assert ours == {
        "skipped": True,
        "non_finite": "loss" if case.fault == "loss" else "gradient",
        "loss_is_finite": case.fault != "loss",
        "unchanged": True,
        "all_finite": True,
        "forgotten": True,
    }


@pytest.mark.parametrize("case", UNGUARDED, ids=str)
def test_without_the_guard_the_weights_are_lost(case: Case, reports: list[list[dict]]):
    for of_rank in reports:
        report = of_rank[CASES.index(case)]
        assert not report["skipped"]
        assert not report["unchanged"]
        assert not report["all_finite"]
