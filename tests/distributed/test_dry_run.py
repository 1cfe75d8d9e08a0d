"""A dry run sees the same groups, shares and messages as real ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from storyteller_ds.config import load_config
from storyteller_ds.planning.dry_run.loopback import Call
from storyteller_ds.planning.dry_run.run import dry_run
from tests.support.distributed import DS_CONFIGS
from tests.support.warm_machine import WarmMachine

WORKER = Path(__file__).with_name("dry_run_worker.py")
SMALL = ["model.hidden_size=64", "model.num_layers=2", "model.intermediate_size=64", "data.sequence_length=32"]


def real(machine: WarmMachine, ranks: int, ds_config: str, overrides: list[str], folder: Path) -> list[dict[str, Any]]:
    run = machine.start(ranks, [str(WORKER), str(folder), ds_config, *overrides], folder / "logs")
    try:
        assert run.wait(240) == 0, run.stderr
    finally:
        run.kill()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def comparable(calls: list[list[Any]]) -> list[Any]:
    """Recorded calls, reduced to what does not depend on the values."""
    found = [Call(operation, tuple(ranks), tuple(shape), dtype) for operation, ranks, shape, dtype in calls]
    return [(call.ranks, call.comparable()) for call in found]


@pytest.mark.parametrize(
    ("ranks", "ds_config", "others"),
    [
        (2, "zero2", ["parallel.ep_size=2"]),
        (4, "zero1", ["parallel.ep_size=2"]),
        (4, "zero3", []),
        (4, "zero3_autoep", ["parallel.ep_size=2"]),
    ],
)
def test_as_on_real_ranks(machine: WarmMachine, tmp_path: Path, ranks: int, ds_config: str, others: list[str]):
    overrides = [*SMALL, f"train.global_batch_size={2 * ranks}", *others]
    file = str(DS_CONFIGS / f"{ds_config}.json")
    seen = dry_run(load_config("quickstart", overrides, ds_config=file, ranks=ranks), ranks, ranks, lambda _: None)
    assert seen.disagreements == []
    views = real(machine, ranks, file, overrides, tmp_path)
    assert len(seen.views) >= min(ranks, 3)
    for view in seen.views:
        expected = views[view.rank]
        assert [list(group) for group in view.groups] == expected["groups"]
        assert {name: list(shape) for name, shape in view.held.items()} == expected["held"]
        assert view.optimized == expected["optimized"]
        for part in ("building", "stepping"):
            assert comparable([list(call) for call in getattr(view, part)]) == comparable(expected[part])
    assert {call.operation for call in seen.views[0].stepping} >= {"all_reduce"}
