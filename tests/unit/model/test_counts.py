"""Parameter counts against counts by hand, and operation counts against torch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from storyteller_ds.model.counts import count_parameters, flops_per_token
from storyteller_ds.model.decoder import Decoder

DENSE = {"num_experts": 0}
GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True}


def test_a_dense_model_by_hand(make_run):
    # Embedding 61 * 32; per block: q, k, v, o of 32 * 32, two gains of 32, three projections of 32 * 24; final gain.
    by_hand = 61 * 32 + 2 * (4 * 32 * 32 + 2 * 32 + 3 * 32 * 24) + 32
    assert count_parameters(make_run({}, DENSE)) == (by_hand, by_hand)


def test_gpt2_by_hand(make_run):
    block = 4 * (32 * 32 + 32) + 2 * 2 * 32 + (32 * 24 + 24) + (24 * 32 + 32)
    by_hand = 61 * 32 + 16 * 32 + 2 * block + 2 * 32
    assert count_parameters(make_run(GPT2, DENSE)) == (by_hand, by_hand)


def test_an_moe_model_by_hand(make_run):
    # Two key/value heads for four heads; blocks 1 and 3 (of 0 to 3) are MoE layers of 8 experts and a router.
    run = make_run({"num_layers": 4, "num_kv_heads": 2}, {"num_experts": 8, "top_k": 3, "every_n_layers": 2})
    expert = 3 * 32 * 24
    attention = 2 * 32 * 32 + 2 * 16 * 32 + 2 * 32
    shared = 61 * 32 + 32 + 4 * attention + 2 * expert + 2 * 8 * 32
    assert count_parameters(run) == (shared + 2 * 8 * expert, shared + 2 * 3 * expert)


def test_untied_embeddings_count_twice(make_run):
    tied, untied = (count_parameters(make_run({"tie_embeddings": tie})) for tie in (True, False))
    assert (untied.total - tied.total, untied.active - tied.active) == (61 * 32, 61 * 32)


@pytest.mark.parametrize("model", [{}, {**GPT2, "tie_embeddings": False}], ids=str)
@pytest.mark.parametrize("moe", [DENSE, {"noisy_gating": True}, {"num_experts": 5, "top_k": 5}], ids=str)
def test_the_total_is_that_of_the_model(make_run, model, moe):
    run = make_run(model, moe)
    total, active = count_parameters(run)
    assert total == sum(parameter.numel() for parameter in Decoder(run).parameters())
    # Only the default, top 2 of 4, leaves experts idle.
    assert (active < total) == (moe == {"noisy_gating": True})


@pytest.mark.parametrize("model", [{}, {"tie_embeddings": False, "num_kv_heads": 2}, GPT2], ids=str)
@pytest.mark.parametrize("moe", [DENSE, {}, {"num_experts": 8, "top_k": 1, "noisy_gating": True}], ids=str)
@pytest.mark.parametrize("length", [1, 16])
def test_operations_are_those_that_torch_counts(make_run, make_decoder, token_BS, model, moe, length):
    """The counts agree except for attention, where torch counts all S * S scores, half of which are masked.

    A token sees (S + 1) / 2 positions on average, and that is what flops_per_token counts.
    """
    run = make_run(model, moe)
    decoder = make_decoder(run).train()
    # The counter knows no CPU attention kernel, so it has to see the matrix products inside.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits_BSV, _ = decoder(token_BS[:, :length])
        logits_BSV.backward(torch.ones_like(logits_BSV))
    counted = counter.get_total_flops() / (3 * length)
    masked = length - (length + 1) / 2
    # One forward and two backward; scores and weighted values; 2 operations per feature and position.
    attention = 3 * 2 * 2 * run.model.num_layers * run.model.hidden_size * masked
    assert flops_per_token(run, length) == pytest.approx(counted - attention, rel=1e-12)


def test_the_length_is_that_of_training_unless_given(make_run):
    run = make_run({"context_length": 64})
    assert flops_per_token(run) == flops_per_token(run, 16) < flops_per_token(run, 64)
