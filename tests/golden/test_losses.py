"""Frozen losses of a small run: a change of initialization, routing, loss or optimizer shows here first.

A deliberate change of the numbers replaces LOSSES and is recorded in CHANGELOG.md.
"""

from importlib.resources import files

import pytest
import torch

from storyteller_ds.config import load_config
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.engines.step import train_step

AS_BEFORE = files("storyteller_ds.bench") / "recipes" / "adamw_mixture.yaml"
LOSSES = {
    str(AS_BEFORE): (5.705775, 5.562781, 5.437048, 5.322245, 5.217222),
    "quickstart": (5.690600, 5.272084, 5.143167, 5.082942, 5.041161),
}


@pytest.mark.parametrize("config", LOSSES, ids=["adamw", "quickstart"])
def test_losses_of_the_first_steps(config):
    overrides = ["model.hidden_size=32", "model.num_layers=2", "model.intermediate_size=48", "tokenizer.vocab_size=300"]
    run = load_config(config, [*overrides, "seed=7"]).run
    engine = SingleEngine(run, World(rank=0, local_rank=0, size=1, local_size=1), torch.device("cpu"))
    # Not torch's generator: its stream may change between versions.
    row = torch.arange(4 * 33).view(4, 33) * 7919 % 293
    batch = MicroBatch(row[:, :-1], row[:, 1:])
    losses = [train_step(engine, [batch], lr=3e-3).loss for _ in range(5)]
    assert losses == pytest.approx(LOSSES[config], rel=1e-5)
