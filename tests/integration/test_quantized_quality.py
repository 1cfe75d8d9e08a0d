"""What 8 and 4 bits cost a mixture that has learned to tell stories."""

from pathlib import Path

import pytest
import torch

from storyteller_ds import load, train
from storyteller_ds.conversion.quantize import QuantizedRun, quantize_run
from storyteller_ds.model import quantized

MOST = {8: 0.005, 4: 0.03}
"""Bits per byte that are lost (part of them)."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"train.max_steps": 200, "data.builtin_stories": 6000, "tracking.wandb": "disabled"}
    return train("quickstart", settings, output_dir=tmp_path_factory.mktemp("stories") / "run").folder


def quantize(run: Path, bits: int, output: Path) -> QuantizedRun:
    return quantize_run(run, bits, output, None, torch.device("cpu"), lambda line: None)


def lost(done: QuantizedRun) -> float:
    before, after = (score.bits_per_byte for score in done.scores)
    return after / before - 1


@pytest.mark.parametrize("bits", [8, 4])
def test_it_costs_little(run, tmp_path, bits):
    done = quantize(run, bits, tmp_path / "small")
    assert done.scores[0].bits_per_byte < 0.6, "it has learned"
    assert lost(done) < MOST[bits]
    assert done.bytes[1] < done.bytes[0] * {8: 0.35, 4: 0.25}[bits]
    story = load(tmp_path / "small").generate("Once upon a time", seed=1, max_new_tokens=60)
    assert story.startswith("Once upon a time")


def test_of_three_values_it_costs_much(run, tmp_path, monkeypatch):
    # Control for the test above.
    monkeypatch.setattr(quantized, "_MOST", {8: 127, 4: 1})
    assert lost(quantize(run, 4, tmp_path / "small")) > 3 * MOST[4]
