"""What a trace records about each token of a story, compared with one pass over the whole story."""

import json
from pathlib import Path

import pytest
import torch

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.generation.decode import prompt_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.generation.torch_stepper import TorchStepper
from storyteller_ds.generation.trace import TracedStory
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters

SEED = 6
"""Seed of a story that fills the context."""


@pytest.fixture(params=[1, 2], ids=["every layer", "every second layer"])
def model(request) -> StoryModel:
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=280), ["Once there was a fox. Café."] * 3)
    run = RunConfig.model_validate(
        {
            "model": {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "intermediate_size": 24, "init_std": 0.3},
            "moe": {"num_experts": 6, "top_k": 2, "every_n_layers": request.param},
            "data": {"sequence_length": 40},
            "tokenizer": {"vocab_size": 280},
        }
    )
    decoder = Decoder(run)
    init_parameters(decoder, run.model, 3)
    return StoryModel(decoder.eval(), run, tokenizer, Path())


@torch.no_grad()
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 2.0, "top_k": 50, "min_p": 0.01}, {"max_new_tokens": 5}], ids=str
)
def test_probabilities_and_experts_are_those_of_one_pass(model, sampling):
    config = SamplingConfig(seed=SEED, **sampling)
    record = TracedStory(model, TorchStepper(model.decoder, model.run), "Once", config).record()
    told = json.loads(json.dumps(record))
    assert told["prompt"] + told["text"] == model.generate("Once", seed=SEED, **sampling)
    assert told["reason"] == ("length" if "max_new_tokens" in sampling else "context")
    assert "".join(token["text"] for token in told["tokens"]) == told["text"]

    prompt = prompt_ids(model.tokenizer, "Once")
    ids = prompt + [token["id"] for token in told["tokens"]]
    logits_BSV, stats = model.decoder(torch.tensor([ids[:-1]]))
    prob_SV = logits_BSV[0].double().softmax(dim=-1)
    before = range(len(prompt) - 1, len(ids) - 1)
    wanted = [float(prob_SV[place, ids[place + 1]]) for place in before]
    assert [token["probability"] for token in told["tokens"]] == pytest.approx(wanted, rel=1e-4)
    experts = [[layer.expert_TK[place].tolist() for layer in stats] for place in before]
    assert [token["experts"] for token in told["tokens"]] == experts
    assert len({str(each) for each in experts}) > 1
    assert len(experts[0]) == sum(model.run.moe.is_moe_layer(i) for i in range(3))


def test_a_stepper_tells_one_story_after_the_other(model):
    stepper = TorchStepper(model.decoder, model.run)
    stories = [TracedStory(model, stepper, "Once", SamplingConfig(seed=seed)) for seed in (1, 2, 1)]
    first, second, third = (story.record() for story in stories)
    assert first == third
    assert first != second


def test_a_dense_model_has_no_experts(model):
    run = model.run.model_copy(update={"moe": model.run.moe.model_copy(update={"num_experts": 0})})
    decoder = Decoder(run)
    init_parameters(decoder, run.model, 3)
    dense = model._replace(decoder=decoder.eval(), run=run)
    record = TracedStory(dense, TorchStepper(decoder, run), "Once", SamplingConfig(max_new_tokens=3)).record()
    assert [token["experts"] for token in record["tokens"]] == [[], [], []]
