"""The atlas of a trained mixture's experts."""

from pathlib import Path

import pytest
import torch

from storyteller_ds import train
from storyteller_ds.atlas.atlas import Atlas, make_atlas

SETTINGS = {
    **{"model.hidden_size": 64, "model.intermediate_size": 96, "model.num_layers": 2, "moe.num_experts": 6},
    **{"data.builtin_stories": 600, "data.sequence_length": 64, "tokenizer.vocab_size": 512, "optimizer.lr": 5e-3},
    **{"train.max_steps": 150, "train.eval_every_steps": 150, "checkpoint.every_steps": 150, "parallel.device": "cpu"},
    **{"moe.balance_loss_coef": 1e-3, "train.sample_every_steps": 150, "tracking.wandb": "disabled"},
}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    run = train("tiny_test", SETTINGS, output_dir=tmp_path_factory.mktemp("runs") / "mixture")
    return make_atlas(Path(run.folder), None, 20_000, 5_000, torch.device("cpu"), lambda line: None)


def test_the_busiest_expert_costs_more_than_the_idlest(atlas):
    for layer in atlas.layers:
        by_load = sorted(layer.experts, key=lambda each: each.load)
        idle, busy = by_load[0].cost, by_load[-1].cost
        assert busy is not None
        assert idle is not None
        assert busy.value > idle.value
        assert busy.value > (busy.half_width or 0), "surely"


def test_more_that_are_missing_cost_more_than_each_alone(atlas):
    measured = [each.measured.cost.value for each in atlas.prunings]
    assert measured == sorted(measured)
    assert measured[-1] > atlas.prunings[-1].predicted


def test_routers_follow_tokens_and_the_story_says_little(atlas):
    for layer in atlas.layers:
        share = {each.feature: each.share for each in layer.information}
        assert share["token"] > 0.5
        assert share["token"] > share["next token"] > share["part of the story"]
        assert share["part of the story"] < 0.05
