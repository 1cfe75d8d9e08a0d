"""nanochat's block options against a decoder written out here, in fp64 and one position at a time."""

import math

import pytest
import torch
from torch import Tensor

from storyteller_ds.model.init import init_parameters
from tests.support.tolerances import SIMPLE, assert_within

OPTIONS = {
    "activation": "relu2",
    "logit_softcap": 3.0,
    "value_embeddings": True,
    "residual_scales": True,
    "qk_norm": True,
    "tie_embeddings": False,
}
DENSE = {"num_experts": 0}
LAYERS, HEADS, HEAD = 3, 4, 8


def normal(x_D: Tensor, gain_D: Tensor) -> Tensor:
    return x_D / (x_D.square().mean() + 1e-5).sqrt() * gain_D


def turned(x_D: Tensor, position: int) -> Tensor:
    half = len(x_D) // 2
    angle_H = position * 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    first_H, second_H = x_D[:half], x_D[half:]
    cos_H, sin_H = angle_H.cos(), angle_H.sin()
    return torch.cat([first_H * cos_H - second_H * sin_H, second_H * cos_H + first_H * sin_H])


def attended(query_D: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    share_S = torch.softmax(torch.stack([query_D @ key_D / HEAD**0.5 for key_D in keys]), 0)
    return share_S @ torch.stack(values)


def logits_by_hand(weights: dict[str, Tensor], token_S: list[int]) -> Tensor:
    """Return the [S, V] logits of a dense decoder with all of OPTIONS."""
    w = {name: tensor.detach().double() for name, tensor in weights.items()}
    stream = [w["embedding.weight"][token] for token in token_S]
    first = list(stream)
    for i in range(LAYERS):
        block = {name.removeprefix(f"blocks.{i}."): t for name, t in w.items() if name.startswith(f"blocks.{i}.")}
        a, b = block["residual.scale"]
        stream = [a * x_D + b * x0_D for x_D, x0_D in zip(stream, first, strict=True)]
        inputs = [normal(x_D, block["attention_norm.weight"]) for x_D in stream]
        heads = []
        for h in range(HEADS):
            rows = slice(h * HEAD, (h + 1) * HEAD)
            queries, keys, values = [], [], []
            for position, x_D in enumerate(inputs):
                q, k, v = (block[f"attention.{p}_proj.weight"][rows] @ x_D for p in "qkv")
                queries.append(turned(normal(q, block["attention.q_norm.weight"]), position))
                keys.append(turned(normal(k, block["attention.k_norm.weight"]), position))
                if "attention.value_embedding.gate.weight" in block:
                    gate = block["attention.value_embedding.gate.weight"][h] @ x_D[:32]
                    own = block["attention.value_embedding.embedding.weight"][token_S[position]][rows]
                    v = v + 2 / (1 + math.exp(-gate)) * own
                values.append(v)
            heads.append([attended(q, keys[: j + 1], values[: j + 1]) for j, q in enumerate(queries)])
        stream = [
            x_D + block["attention.o_proj.weight"] @ torch.cat([head[j] for head in heads])
            for j, x_D in enumerate(stream)
        ]
        for j, x_D in enumerate(stream):
            up = block["ffn.gate_up_proj.weight"] @ normal(x_D, block["ffn_norm.weight"])
            stream[j] = x_D + block["ffn.down_proj.weight"] @ torch.where(up > 0, up, 0.0) ** 2
    logits_SV = torch.stack([w["lm_head.weight"] @ normal(x_D, w["final_norm.weight"]) for x_D in stream])
    return 3.0 * torch.tanh(logits_SV / 3.0)


def test_logits_by_hand(make_run, make_decoder, token_BS):
    decoder = make_decoder(make_run({"num_layers": LAYERS, **OPTIONS}, DENSE))
    weights = dict(decoder.named_parameters())
    # Every second block, including the last.
    assert {name.split(".")[1] for name in weights if "value_embedding" in name} == {"0", "2"}
    logits_BSV, _ = decoder(token_BS)
    for token_S, logits_SV in zip(token_BS.tolist(), logits_BSV, strict=True):
        assert_within(logits_SV, logits_by_hand(weights, token_S), SIMPLE)


@pytest.mark.parametrize("option", ["activation", "logit_softcap", "value_embeddings", "residual_scales"])
def test_the_comparison_sees_that_an_option_is_off(make_run, make_decoder, token_BS, option):
    weights = dict(make_decoder(make_run({"num_layers": LAYERS, **OPTIONS}, DENSE)).named_parameters())
    without = {"activation": "relu", "logit_softcap": None}.get(option, False)
    decoder = make_decoder(make_run({"num_layers": LAYERS, **OPTIONS, option: without}, DENSE))
    decoder.load_state_dict({name: weights[name] for name, _ in decoder.named_parameters()})
    logits_BSV, _ = decoder(token_BS)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(logits_BSV[0], logits_by_hand(weights, token_BS[0].tolist()), SIMPLE)


@pytest.mark.parametrize("moe", [DENSE, {}], ids=["dense", "mixture"])
def test_the_loss_is_that_of_the_capped_logits(make_run, make_decoder, token_BS, moe):
    decoder = make_decoder(make_run(OPTIONS, moe))
    nll_sum, _ = decoder(token_BS, target_BS=token_BS.roll(-1, 1))
    logits_BSV, _ = decoder(token_BS)
    assert float(logits_BSV.detach().abs().max()) < 3.0
    expected = -logits_BSV.double().log_softmax(-1).gather(2, token_BS.roll(-1, 1)[..., None]).sum()
    assert_within(nll_sum, expected, SIMPLE)


def test_initial_values(make_run, make_decoder):
    run = make_run({"num_layers": LAYERS, **OPTIONS}, DENSE)
    decoder = make_decoder(run)
    init_parameters(decoder, run.model, seed=0)
    weights = dict(decoder.named_parameters())
    torch.testing.assert_close(weights["blocks.1.residual.scale"].detach(), torch.tensor([1.0, 0.1]))
    assert not weights["blocks.2.attention.value_embedding.gate.weight"].any()
    assert weights["blocks.2.attention.value_embedding.embedding.weight"].std().item() == pytest.approx(0.02, rel=0.2)
