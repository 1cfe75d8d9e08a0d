"""Checkpoints side by side: names, and which one is better."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from storyteller_ds.evaluation.interval import ratio
from storyteller_ds.evaluation.report import compared, labels, verdict


def evaluated(nll: list[float], folder: str = "runs/a/checkpoints/step_00000010", text: str = "t") -> Any:
    nll_N, bytes_N = np.log(2) * np.array(nll), np.full(len(nll), 10)
    prediction = SimpleNamespace(nll_N=nll_N, bytes_N=bytes_N, bits_per_byte=ratio(nll, bytes_N))
    return SimpleNamespace(folder=Path(folder), text=SimpleNamespace(fingerprint=text), prediction=prediction)


def test_a_small_difference_is_seen_story_by_story():
    # Stories differ far more than the models do.
    stories = np.random.default_rng(0).normal(15, 5, 50)
    noise = np.random.default_rng(1).normal(0, 0.1, 50)
    worse = evaluated((stories + 0.2 + noise).tolist())
    better = evaluated(stories.tolist(), "runs/b/checkpoints/step_1")
    (difference,) = compared([worse, better])
    assert difference.value == pytest.approx(-(0.2 + noise.mean()) / 10)
    assert difference.half_width is not None
    assert worse.prediction.bits_per_byte.half_width > 10 * difference.half_width
    (line,) = verdict([worse, better])
    assert line.startswith("b 1 predicts best, with 0.0196 ± 0.0025 bits")
    assert line.endswith("bits per byte less than a 10")


def test_what_cannot_be_told_apart_is_not():
    generator = np.random.default_rng(2)
    stories = generator.normal(15, 5, 50)
    others = stories + generator.normal(0, 1, 50)
    (line,) = verdict([evaluated(stories.tolist()), evaluated(others.tolist(), "runs/b/checkpoints/step_1")])
    assert "cannot be told apart on this text" in line
    (line,) = verdict([evaluated([15.0]), evaluated([10.0])])  # one story says nothing
    assert "cannot be told apart on this text" in line


def test_different_texts_are_not_compared():
    one, other = evaluated([15.0, 12.0]), evaluated([10.0, 11.0], text="another")
    assert compared([one, other]) == verdict([one, other]) == []
    assert compared([one]) == verdict([one]) == []


def test_no_two_names_are_the_same():
    folders = ["r/a/checkpoints/step_00000000", "r/b/checkpoints/step_00000120", "x/a/checkpoints/step_00000000"]
    assert labels([evaluated([1, 2], each) for each in folders]) == ["a 0 (1)", "b 120", "a 0 (3)"]
    assert labels([evaluated([1, 2], "exports/hf"), evaluated([1, 2], "copied/step_00000007")]) == ["hf", "copied 7"]
