"""Several cases in one launch of two ranks: a test writes them, a worker runs them, the test reads its reports."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from storyteller_ds.distributed.world import World
from tests.support.warm_machine import WarmMachine

C = TypeVar("C", bound=NamedTuple)
RANKS, SECONDS = 2, 240
_CASES = "cases.json"


def reports_of(machine: WarmMachine, worker: Path, cases: Sequence[NamedTuple], folder: Path) -> list[list[Any]]:
    """Run the worker script on all cases in one launch; returns its report on each case, for each rank.

    Args:
        machine: machine that runs the worker.
        worker: the script, which calls run_cases with the folder that it gets as its argument.
        cases: cases whose fields are plain values.
        folder: an empty folder.
    """
    (folder / _CASES).write_text(json.dumps(cases), encoding="utf-8")
    run = machine.start(RANKS, [str(worker), str(folder)], folder / "logs")
    assert run.wait(SECONDS) == 0, run.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


def run_cases(folder: Path, kind: Callable[..., C], run_case: Callable[[C, World], Any]) -> None:
    """Act as one rank of the worker: run all cases, each built by `kind`, and write the results of run_case."""
    world = World.from_environment()
    torch.set_num_threads(1)
    cases = [kind(*values) for values in json.loads((folder / _CASES).read_text())]
    with world.connected(torch.device("cpu"), 2):
        reports = [run_case(case, world) for case in cases]
    (folder / f"rank{world.rank}.json").write_text(json.dumps(reports), encoding="utf-8")
