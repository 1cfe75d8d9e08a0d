"""train.profile_steps: what is in the trace, and what is not."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.training.callbacks.profile import OPERATORS, TRACE, Profile


def profiled(folder: Path, first: int, last: int, begin: int = 0, end: int = 5) -> Profile:
    """A run in which step N multiplies a matrix of N rows."""
    callback = Profile(first, last, folder)
    callback.trainer = SimpleNamespace(device=torch.device("cpu"))
    callback.on_start(TrainState(step=begin))
    for step in range(begin + 1, end + 1):
        torch.mm(torch.ones(step, 7), torch.ones(7, 7))
        assert callback.acts_after(TrainState(step=step)) == (step in (first - 1, last))
        callback.on_step_end(TrainState(step=step), last=step == end)
    callback.on_end(0)
    return callback


def traced_steps(folder: Path) -> list[int]:
    events = json.loads(gzip.decompress((folder / TRACE).read_bytes()))["traceEvents"]
    products = [event["args"]["Input Dims"] for event in events if event.get("name") == "aten::mm"]
    return sorted(dims[0][0] for dims in products)


@pytest.mark.parametrize(("first", "last", "expected"), [(2, 3, [2, 3]), (1, 1, [1]), (4, 9, [4, 5])])
def test_exactly_these_steps_are_traced(tmp_path, first, last, expected):
    profiled(tmp_path / "profile", first, last)
    assert traced_steps(tmp_path / "profile") == expected
    assert "aten::mm" in (tmp_path / "profile" / OPERATORS).read_text()
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == sorted([TRACE, OPERATORS])


def test_a_run_that_continues_right_before_them_is_traced_from_its_start(tmp_path):
    profiled(tmp_path / "profile", 3, 3, begin=2)
    assert traced_steps(tmp_path / "profile") == [3]


def test_a_run_that_continues_behind_them_leaves_nothing(tmp_path):
    profiled(tmp_path / "profile", 2, 3, begin=2)
    assert not (tmp_path / "profile").exists()


def test_an_interrupted_trace_is_dropped(tmp_path):
    callback = Profile(1, 2, tmp_path / "profile")
    callback.trainer = SimpleNamespace(device=torch.device("cpu"))
    callback.on_start(TrainState())
    callback.on_end(130)
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(("value", "expected"), [("10-13", (10, 13)), ("7-7", (7, 7)), (None, None)])
def test_how_they_are_written(value, expected):
    assert RunConfig.model_validate({"train": {"profile_steps": value}}).train.profiled == expected


@pytest.mark.parametrize("value", ["13-10", "0-3", "3-", "-3", "3..4", "3", 3, True])
def test_how_they_are_not(value):
    with pytest.raises(ValueError, match="profile_steps"):
        RunConfig.model_validate({"train": {"profile_steps": value}})
