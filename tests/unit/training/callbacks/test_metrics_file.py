"""metrics.jsonl has complete lines, and none after the step that a run continues from."""

import json
from pathlib import Path

import pytest

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.records.metrics import read_metrics
from storyteller_ds.records.trained_run import TrainedRun
from storyteller_ds.training.callbacks.metrics_file import MetricsFile

LINES = [
    {"step": 1, "train_loss": 3.0},
    {"step": 2, "train_loss": 2.0},
    {"step": 2, "val_loss": 2.5},
    {"step": 3, "train_loss": 1.0},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def written(path: Path) -> str:
    metrics = MetricsFile(path)
    metrics.on_start(TrainState())
    for line in LINES:
        (metrics.on_eval if "val_loss" in line else metrics.on_train)(line)
    return path.read_text(encoding="utf-8")


def test_a_line_is_a_json_object_and_is_there_at_once(path):
    metrics = MetricsFile(path)
    metrics.on_start(TrainState())
    assert path.read_text() == ""
    for count, line in enumerate(LINES, 1):
        metrics.on_train(line)
        assert [json.loads(text) for text in path.read_text().splitlines()] == LINES[:count]
        assert path.read_text().endswith("\n")


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 1), (2, 3), (3, 4), (9, 4)])
def test_lines_beyond_the_step_are_cut(path, step, kept):
    text = written(path)
    MetricsFile(path).on_start(TrainState(step=step))
    assert path.read_text() == "".join(text.splitlines(keepends=True)[:kept])


@pytest.mark.parametrize("length", range(1, 12))
def test_a_half_written_last_line_is_cut(path, length):
    text = written(path)
    with path.open("a") as file:
        file.write('{"step": 2, "val_loss": 9.0}'[:length])
    metrics = MetricsFile(path)
    metrics.on_start(TrainState(step=3))
    assert path.read_text() == text
    metrics.on_train({"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 2, 3, 4]


@pytest.mark.parametrize("rubbish", ["", "null", "12", "[]", "{}", '{"step": null}', '{"step": "x"}', "\0\0"])
def test_lines_without_a_step_are_cut(path, rubbish):
    text = written(path)
    path.write_text(text + rubbish + "\n")
    MetricsFile(path).on_start(TrainState(step=9))
    assert path.read_text() == text


def test_nothing_is_left_beside_the_file(path):
    written(path)
    MetricsFile(path).on_start(TrainState(step=1))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "torn", ["", '{"step": 4, "train_lo', '{"step": 4}garbage', "\0\0\0", '{"step": 4, "note": "caf\udcc3']
)
def test_a_file_that_is_being_written_is_read(path, torn):
    with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("".join(json.dumps(line) + "\n" for line in LINES) + torn)
    assert read_metrics(path) == LINES
    assert TrainedRun(path.parent, 3).metrics == LINES


def test_only_so_many_steps_are_read(path):
    written(path)
    assert read_metrics(path, attempts=2) == LINES[:3]
    assert read_metrics(path.parent / "none") == []


def test_numbers_that_json_does_not_have_become_null(path):
    metrics = MetricsFile(path)
    metrics.on_start(TrainState())
    bad = {"step": 1, "a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (float("-inf"), 2)}, "e": "NaN"}
    metrics.on_train(bad)

    def refuse(constant):
        raise AssertionError(constant)

    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {
        "step": 1,
        "a": None,
        "b": [None, 1.5],
        "c": {"d": [None, 2]},
        "e": "NaN",
    }


UNDONE = [
    {"step": 1, "train_loss": 3.0, "undone_steps": 0},
    {"step": 2, "train_loss": 2.0, "undone_steps": 0},
    {"step": 3, "train_loss": None, "undone_steps": 0},
    {"step": 2, "train_loss": 2.5, "undone_steps": 2},  # back to step 1
    {"step": 3, "train_loss": 2.4, "undone_steps": 2},
    {"step": 3, "val_loss": 2.4, "undone_steps": 2},
]


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (TrainState(step=2), 2),  # killed, and resumed from before the rollback
        (TrainState(step=3), 3),
        (TrainState(step=1, undone_steps=2), 3),
        (TrainState(step=2, undone_steps=2), 4),  # the undone steps belong to the run that it continues
        (TrainState(step=3, undone_steps=2), 6),
    ],
)
def test_undone_steps_stay_and_are_told_from_those_that_replace_them(path, state, kept):
    metrics = MetricsFile(path)
    metrics.on_start(TrainState())
    for line in UNDONE:
        metrics.on_train(line)
    MetricsFile(path).on_start(state)
    assert [json.loads(line) for line in path.read_text().splitlines()] == UNDONE[:kept]
