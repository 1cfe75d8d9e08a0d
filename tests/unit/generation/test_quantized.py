"""Stories from quantized weights: compiled code matches torch with dequantized weights."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.decode import generate_ids
from storyteller_ds.generation.fast import fast_stepper
from storyteller_ds.generation.load import load_decoder, load_story_model
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.generation.torch_stepper import TorchStepper
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from tests.support.quantized import write_quantized

pytest.importorskip("numba")

CPU = torch.device("cpu")
GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True}
NANOCHAT = {"activation": "relu2", "qk_norm": True, "value_embeddings": True, "residual_scales": True}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense, tied": ({}, {"num_experts": 0}),
    "dense": ({"tie_embeddings": False}, {"num_experts": 0}),
    "mixture, tied": ({"num_kv_heads": 2}, {"num_experts": 4}),
    "mixture": ({"tie_embeddings": False, "qk_norm": True}, {"num_experts": 4}),
    "every second": ({"tie_embeddings": False}, {"num_experts": 3, "every_n_layers": 2}),
    "GPT-2": (GPT2, {"num_experts": 0}),
    "GPT-2 with experts": (GPT2, {"num_experts": 4, "top_k": 1}),
    "nanochat with experts": (NANOCHAT, {"num_experts": 4}),
    "no whole groups": ({"intermediate_size": 40, "tie_embeddings": False}, {"num_experts": 2}),
}


@pytest.fixture(params=MODELS, ids=MODELS)
def run(request) -> RunConfig:
    model, moe = MODELS[request.param]
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 32, "init_std": 0.2}
    return RunConfig.model_validate({
        "model": {**sizes, **model},
        "moe": moe,
        "data": {"sequence_length": 24},
        "tokenizer": {"kind": "char", "vocab_size": 50},
    })  # fmt: skip


@pytest.fixture(params=[8, 4])
def step(request, run: RunConfig, tmp_path: Path) -> Path:
    decoder = Decoder(run)
    init_parameters(decoder, run.model, 3)
    return write_quantized(tmp_path / "run", run, decoder, request.param)


def both(step: Path) -> tuple[StoryModel, StoryModel]:
    """The model with compiled code, and with torch."""
    fast, plain = load_story_model(step, CPU, lambda line: None), load_decoder(step, CPU, pytest.fail)
    assert fast.stepper is not None
    assert plain.stepper is None
    return fast, plain


@torch.no_grad()
def test_every_step_has_the_logits_of_the_dequantized_weights(step):
    fast, plain = both(step)
    tokens = torch.randint(50, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    expected_SV = plain.decoder(torch.tensor([tokens]))[0][0].numpy()
    found = [fast.stepper.begin(tokens[:5], 24).numpy().copy()]
    found += [fast.stepper.step(token).numpy().copy() for token in tokens[5:]]
    np.testing.assert_allclose(np.stack(found), expected_SV[4:], rtol=0, atol=1e-5 * abs(expected_SV).max())
    # The decoder's tensors are views now, and it still computes the same.
    assert np.array_equal(fast.decoder(torch.tensor([tokens]))[0][0].numpy(), expected_SV)


def test_the_same_tokens(step):
    fast, plain = both(step)
    for sampling in ({"temperature": 0}, {"seed": 6, "top_k": 10}):
        config = SamplingConfig(**sampling)
        ids = [
            list(generate_ids(each.decoder, each.run, [1, 2, 3], config, None, stepper=each.stepper))
            for each in (fast, plain, fast._replace(stepper=TorchStepper(fast.decoder, fast.run)))
        ]
        assert ids[0] == ids[1] == ids[2]
        assert len(ids[0]) == 24 - 3 + 1


def test_nothing_is_held_in_fp32_that_is_stored_in_fewer_bits(step):
    fast, plain = both(step)
    held, in_fp32 = (sum(p.numel() * p.element_size() for p in each.decoder.parameters()) for each in (fast, plain))
    assert held < in_fp32 / 2
    stack = fast.stepper.weights.layers(1).qkv
    query = fast.decoder.blocks[0].attention.q_proj.parametrizations.weight.original0
    assert stack.__array_interface__["data"][0] == query.data_ptr(), "in memory once"


class SlowStepper:
    def __init__(self, decoder: object, run: object) -> None:
        time.sleep(0.2)

    def begin(self, prompt: object, length: int) -> None: ...

    def step(self, token: int) -> None: ...


def test_compiling_is_said_once(monkeypatch):
    monkeypatch.setattr("storyteller_ds.generation.fast._SLOW_S", 0.01)
    monkeypatch.setattr("storyteller_ds.generation.fast.packed.PackedDecoder", SlowStepper)
    said: list[str] = []
    fast_stepper(None, None, said.append)
    assert len(said) == 1
