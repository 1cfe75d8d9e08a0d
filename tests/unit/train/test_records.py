"""metrics.jsonl: whole lines, and none beyond the step that a run goes on from."""

import json
from pathlib import Path

import pytest

from storyteller_ds.train.records import MetricsFile
from storyteller_ds.train.state import TrainState

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
