"""The cost in quality of 8 and 4 bits for a mixture that has learned to tell stories."""

from pathlib import Path

import torch

from storyteller_ds import load, train
from storyteller_ds.conversion.quantize import QuantizedRun, quantize_run
from storyteller_ds.model import quantized

MOST = {8: 0.005, 4: 0.03}
"""Number of bits -> largest relative increase in bits per byte."""


def quantize(run: Path, bits: int, output: Path) -> QuantizedRun:
    return quantize_run(run, bits, output, None, torch.device("cpu"), lambda line: None)


def lost(done: QuantizedRun) -> float:
    before, after = (score.bits_per_byte for score in done.scores)
    return after / before - 1


def test_it_costs_little_but_with_three_values_much(tmp_path, monkeypatch):
    settings = {"train.max_steps": 200, "data.builtin_stories": 6000, "tracking.wandb": "disabled"}
    run = train("quickstart", settings, output_dir=tmp_path / "run").folder
    for bits, most in MOST.items():
        small = tmp_path / f"{bits} bits"
        done = quantize(run, bits, small)
        assert done.scores[0].bits_per_byte < 0.6, "it has learned"
        assert lost(done) < most
        assert done.bytes[1] < done.bytes[0] * {8: 0.35, 4: 0.25}[bits]
        story = load(small).generate("Once upon a time", seed=1, max_new_tokens=60)
        assert story.startswith("Once upon a time")
    monkeypatch.setattr(quantized, "_MOST", {8: 127, 4: 1})
    assert lost(quantize(run, 4, tmp_path / "three values")) > 3 * MOST[4], "the control"
