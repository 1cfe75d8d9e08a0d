"""The step in machine code against torch's, for everything that a model can be."""

from typing import Any

import numpy as np
import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.decode import generate_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters

pytest.importorskip("numba")

GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True}
NANOCHAT = {
    "activation": "relu2",
    "qk_norm": True,
    "tie_embeddings": False,
    "value_embeddings": True,
    "residual_scales": True,
    "logit_softcap": 15.0,
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({}, {"num_experts": 0}),
    "mixture": ({"num_kv_heads": 2}, {"num_experts": 4}),
    "three of five": ({"num_kv_heads": 1, "qk_norm": True}, {"num_experts": 5, "top_k": 3}),
    "every second": ({"tie_embeddings": False}, {"num_experts": 4, "every_n_layers": 2}),
    "GPT-2": (GPT2, {"num_experts": 0}),
    "GPT-2 with experts": (GPT2, {"num_experts": 4}),
    "relu": ({"activation": "relu"}, {"num_experts": 0}),
    "nanochat": (NANOCHAT, {"num_experts": 0}),
    "nanochat with experts": (NANOCHAT, {"num_experts": 4}),
}


@pytest.fixture(params=MODELS, ids=MODELS)
def run_and_decoder(request) -> tuple[RunConfig, Decoder]:
    model, moe = MODELS[request.param]
    sizes = {"hidden_size": 40, "num_layers": 3, "num_heads": 4, "intermediate_size": 24, "init_std": 0.2}
    run = RunConfig.model_validate(
        {
            "model": {**sizes, **model},
            "moe": moe,
            "data": {"sequence_length": 24},
            "tokenizer": {"vocab_size": 50},
        }
    )
    decoder = Decoder(run)
    init_parameters(decoder, run.model, 3)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return run, decoder.eval()


@torch.no_grad()
def test_every_step_has_the_logits_of_the_whole_text(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    tokens = torch.randint(50, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    expected_SV = decoder(torch.tensor([tokens]))[0][0].numpy()
    packed = PackedDecoder(decoder, run)
    found = [packed.begin(tokens[:5], 24).numpy().copy(), *(packed.step(token).numpy().copy() for token in tokens[5:])]
    np.testing.assert_allclose(np.stack(found), expected_SV[4:], rtol=0, atol=2e-5 * abs(expected_SV).max())
    # The parameters, now views, are what they were.
    assert np.array_equal(decoder(torch.tensor([tokens]))[0][0].numpy(), expected_SV)


@torch.no_grad()
def test_a_new_prompt_begins_anew(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    packed = PackedDecoder(decoder, run)
    first = [packed.begin([1, 2, 3], 10).clone(), packed.step(4).clone()]
    packed.begin([9, 8], 20)
    packed.step(7)
    again = [packed.begin([1, 2, 3], 10).clone(), packed.step(4).clone()]
    assert torch.equal(torch.stack(first), torch.stack(again))


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 5}, {"seed": 6, "top_k": 10, "top_p": 0.9}])
def test_the_same_tokens_as_with_torch(run_and_decoder, sampling):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    config = SamplingConfig(**sampling)
    expected = list(generate_ids(decoder, run, [1, 2, 3], config, None))
    assert list(generate_ids(decoder, run, [1, 2, 3], config, None, stepper=PackedDecoder(decoder, run))) == expected
    assert len(expected) == 24 - 3 + 1


def test_the_same_tokens_beyond_the_end_of_the_context(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    if decoder.position_embedding is not None:
        pytest.skip("learned positions do not slide")
    config = SamplingConfig(seed=5, max_new_tokens=60, past_context="slide")
    expected = list(generate_ids(decoder, run, [1, 2, 3], config, None))
    assert list(generate_ids(decoder, run, [1, 2, 3], config, None, stepper=PackedDecoder(decoder, run))) == expected
    assert len(expected) == 60


@torch.no_grad()
def test_its_memory_grows_with_the_text(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    tokens = torch.randint(50, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    expected_SV = decoder(torch.tensor([tokens]))[0][0].numpy()
    packed = PackedDecoder(decoder, run)
    packed.begin(tokens[:2], 3)
    found = [packed.step(token).numpy().copy() for token in tokens[2:]]
    np.testing.assert_allclose(np.stack(found), expected_SV[2:], rtol=0, atol=2e-5 * abs(expected_SV).max())
