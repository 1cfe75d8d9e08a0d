"""The decoder against transformers' Llama, Mixtral and GPT-2, and properties that hold for all of them."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from storyteller_ds.model.decoder import Decoder
from tests.support.tolerances import EXACT, SIMPLE, assert_within

transformers = pytest.importorskip("transformers")

GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True}
DENSE = {"num_experts": 0}
LLAMA_NAMES = {
    "model.embed_tokens": "embedding",
    "model.layers.": "blocks.",
    "model.norm.": "final_norm.",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.": "attention.",
    "mlp.gate.": "ffn.router.",
    "mlp.": "ffn.",
}
GPT2_NAMES = {
    "transformer.wte": "embedding",
    "transformer.wpe": "position_embedding",
    "transformer.h.": "blocks.",
    "transformer.ln_f": "final_norm",
    "ln_1": "attention_norm",
    "ln_2": "ffn_norm",
    "attn.c_proj": "attention.o_proj",
    "mlp.c_fc": "ffn.gate_up_proj",
    "mlp.c_proj": "ffn.down_proj",
}

Tensors = Mapping[str, Tensor]


def renamed(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


def from_llama(theirs: Tensors) -> dict[str, Tensor]:
    """Llama's or Mixtral's tensors under our names; the gate is stacked above the up projection."""
    ours = {renamed(name, LLAMA_NAMES): tensor for name, tensor in theirs.items()}
    for gate in [name for name in ours if "gate_proj" in name]:
        up = gate.replace("gate_proj", "up_proj")
        ours[gate.replace("gate_proj", "gate_up_proj")] = torch.cat([ours.pop(gate), ours.pop(up)])
    return ours


def from_gpt2(theirs: Tensors) -> dict[str, Tensor]:
    """GPT-2's tensors under our names; its projections are stored transposed, with q, k and v in one tensor."""
    ours = {}
    for name, tensor in theirs.items():
        turned = tensor.t() if tensor.dim() == 2 and (".attn." in name or ".mlp." in name) else tensor
        if "c_attn" in name:
            for part, piece in zip("qkv", turned.chunk(3), strict=True):
                ours[renamed(name, GPT2_NAMES).replace("attn.c_attn", f"attention.{part}_proj")] = piece
        else:
            ours[renamed(name, GPT2_NAMES)] = turned
    return ours


def assert_same(
    decoder: Decoder,
    other: nn.Module,
    translate: Callable[[Tensors], Tensors],
    token_BS: Tensor,
    no_gradient: str = "none",
) -> None:
    """Assert the same logits and, for a random cotangent, the same gradient of every parameter.

    Args:
        no_gradient: suffix of the names whose gradient is zero up to rounding in both models.
    """
    decoder.load_state_dict(translate({name: p.detach() for name, p in other.named_parameters()}))
    actual_BSV, _ = decoder(token_BS)
    expected_BSV = other(token_BS).logits
    assert_within(actual_BSV, expected_BSV, SIMPLE)
    cotangent_BSV = torch.randn(actual_BSV.shape, generator=torch.Generator().manual_seed(3))
    actual_BSV.backward(cotangent_BSV)
    expected_BSV.backward(cotangent_BSV)
    expected = translate({name: p.grad for name, p in other.named_parameters()})
    assert expected.keys() == dict(decoder.named_parameters()).keys()
    rounding = SIMPLE * max(float(grad.abs().max()) for grad in expected.values())
    for name, parameter in decoder.named_parameters():
        if name.endswith(no_gradient):
            assert max(float(parameter.grad.abs().max()), float(expected[name].abs().max())) < rounding
        else:
            assert_within(parameter.grad, expected[name], SIMPLE)


def llama_settings(vocab_size: int, **settings: object) -> dict[str, object]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "attn_implementation": "eager",
        **settings,
    }


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 2}, {"tie_embeddings": False, "rope_theta": 100.0}], ids=str)
def test_the_dense_default_is_llama(make_run, fill, token_BS, changes):
    run = make_run(changes, DENSE)
    settings = llama_settings(
        run.tokenizer.vocab_size,
        num_key_value_heads=run.model.kv_heads,
        tie_word_embeddings=run.model.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": run.model.rope_theta},
    )
    other = fill(transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)))
    assert_same(Decoder(run), other, from_llama, token_BS)


@pytest.mark.parametrize(("experts", "top_k", "kv_heads"), [(8, 2, 4), (4, 1, 2), (3, 3, 1)])
def test_the_moe_default_is_mixtral(make_run, fill, token_BS, experts, top_k, kv_heads):
    run = make_run({"num_kv_heads": kv_heads}, {"num_experts": experts, "top_k": top_k})
    settings = llama_settings(
        run.tokenizer.vocab_size,
        num_key_value_heads=kv_heads,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        experts_implementation="eager",
    )
    other = fill(transformers.MixtralForCausalLM(transformers.MixtralConfig(**settings)))
    # With top-1, the gate weight is 1 whatever the logits.
    assert_same(Decoder(run), other, from_llama, token_BS, "router.weight" if top_k == 1 else "none")


def test_gpt2_is_a_choice_of_options(make_run, fill, token_BS):
    run = make_run(GPT2, DENSE)
    config = transformers.GPT2Config(
        vocab_size=run.tokenizer.vocab_size,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=24,
        activation_function="gelu_new",
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    other = fill(transformers.GPT2LMHeadModel(config)).eval()
    # Without rotary positions, a key bias adds the same number to every score of a query.
    assert_same(Decoder(run), other, from_gpt2, token_BS, "k_proj.bias")


def test_the_comparison_sees_a_gate_below_the_up_projection(make_run, fill, token_BS):
    run = make_run({}, DENSE)
    other = fill(transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_settings(run.tokenizer.vocab_size))))

    def swapped(theirs: Tensors) -> dict[str, Tensor]:
        return {n: t.roll(24, dims=0) if "gate_up" in n else t for n, t in from_llama(theirs).items()}

    with pytest.raises(AssertionError, match="difference"):
        assert_same(Decoder(run), other, swapped, token_BS)


NANOCHAT = {"activation": "relu2", "logit_softcap": 9.0, "value_embeddings": True, "residual_scales": True}
every_kind = pytest.mark.parametrize(
    ("model", "moe"),
    [({}, DENSE), ({}, {}), (GPT2, DENSE), (GPT2, {"top_k": 1}), (NANOCHAT, DENSE), (NANOCHAT, {})],
    ids=str,
)


@every_kind
def test_earlier_logits_do_not_depend_on_later_tokens(make_run, make_decoder, token_BS, model, moe):
    decoder = make_decoder(make_run(model, moe))
    vectors: list[Tensor] = []
    decoder.embedding.register_forward_hook(lambda _, args, out: vectors.append(out))
    logits_BSV, _ = decoder(token_BS)
    for split in (1, 7, 15):
        cotangent = torch.randn(3, split, logits_BSV.shape[2])
        (grad_BSD,) = torch.autograd.grad(logits_BSV[:, :split], vectors[0], cotangent, retain_graph=True)
        # Exactly zero: neither expert capacity nor the mask lets later vectors in.
        assert not grad_BSD[:, split:].any()
        assert grad_BSD[:, :split].flatten(2).any(dim=-1).all()
        changed_BS = token_BS.clone()
        changed_BS[:, split:] = (token_BS[:, split:] + 1) % decoder.vocab_size
        changed_BSV, _ = decoder(changed_BS)
        assert_within(changed_BSV[:, :split], logits_BSV[:, :split], SIMPLE)
        assert not torch.allclose(changed_BSV[:, split:], logits_BSV[:, split:], atol=1e-2)


@every_kind
def test_sequences_of_a_batch_do_not_see_each_other(make_run, make_decoder, token_BS, model, moe):
    decoder = make_decoder(make_run(model, moe))
    together_BSV, _ = decoder(token_BS)
    alone_BSV = torch.cat([decoder(row_S[None])[0] for row_S in token_BS])
    assert_within(together_BSV, alone_BSV, SIMPLE)


@every_kind
def test_twice_is_the_same_bits(make_run, make_decoder, token_BS, model, moe):
    decoder = make_decoder(make_run(model, moe))
    assert_within(decoder(token_BS)[0], decoder(token_BS)[0], EXACT)


@pytest.mark.parametrize("model", [{}, {"position": "learned"}], ids=str)
def test_beyond_the_context_is_refused(make_run, make_decoder, token_BS, model):
    decoder = make_decoder(make_run(model))
    with pytest.raises(ValueError, match="17 tokens do not fit the context of 16"):
        decoder(torch.cat([token_BS, token_BS[:, :1]], dim=1))
    with pytest.raises(ValueError, match="17 tokens"):
        decoder(token_BS[:, :3], start=14)
    assert decoder(token_BS[:, :2], start=14)[0].shape == (3, 2, decoder.vocab_size)


def test_the_context_may_be_longer_than_the_training_sequences(make_run, make_decoder, token_BS):
    decoder = make_decoder(make_run({"context_length": 32}))
    assert decoder(token_BS.repeat(1, 2))[0].shape[1] == 32


def test_an_untied_head_is_a_parameter_of_its_own(make_run, make_decoder, token_BS):
    tied, untied = make_decoder(make_run()), make_decoder(make_run({"tie_embeddings": False}))
    assert set(dict(untied.named_parameters())) - set(dict(tied.named_parameters())) == {"lm_head.weight"}
    untied.load_state_dict({**tied.state_dict(), "lm_head.weight": tied.embedding.weight})
    assert_within(untied(token_BS)[0], tied(token_BS)[0], EXACT)
    with torch.no_grad():
        untied.lm_head.weight.zero_()
    assert not untied(token_BS)[0].any()


@pytest.mark.parametrize(("every", "moe_layers"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [2]), (5, [4]), (6, [])])
def test_every_nth_block_is_an_moe_layer(make_run, make_decoder, token_BS, every, moe_layers):
    decoder = make_decoder(make_run({"num_layers": 5}, {"every_n_layers": every}))
    assert [i for i, block in enumerate(decoder.blocks) if hasattr(block.ffn, "router")] == moe_layers
    assert len(decoder(token_BS)[1]) == len(moe_layers)


def test_dropout_acts_in_training_only(make_run, make_decoder, token_BS):
    plain, dropping = make_decoder(make_run()), make_decoder(make_run({"dropout": 0.3}))
    assert_within(dropping(token_BS)[0], plain(token_BS)[0], EXACT)
    dropping.train()
    first_BSV, second_BSV = dropping(token_BS)[0], dropping(token_BS)[0]
    assert not torch.allclose(first_BSV, second_BSV, atol=1e-2)
    torch.manual_seed(5)
    third_BSV = dropping(token_BS)[0]
    torch.manual_seed(5)
    assert_within(dropping(token_BS)[0], third_BSV, EXACT)
    assert_within(plain.train()(token_BS)[0], plain.eval()(token_BS)[0], EXACT)


def test_dropout_is_where_the_config_says(make_run, make_decoder, token_BS):
    """Dropout acts on the embedding, the attention weights, and both residual branches."""
    decoder = make_decoder(make_run({"dropout": 0.5, "num_layers": 1}, DENSE)).train()
    inputs: dict[str, Tensor] = {}
    block = decoder.blocks[0]
    block.attention_norm.register_forward_hook(lambda _, args, out: inputs.update(embedded=args[0]))
    block.ffn_norm.register_forward_hook(lambda _, args, out: inputs.update(attended=out[1]))
    decoder.final_norm.register_forward_hook(lambda _, args, out: inputs.update(fed=args[0]))
    decoder(token_BS)
    steps = [inputs["embedded"], inputs["attended"] - inputs["embedded"], inputs["fed"] - inputs["attended"]]
    for written_BSD in steps:
        # 1536 entries, half of them dropped: 5 standard deviations are 0.064.
        assert (written_BSD == 0).float().mean() == pytest.approx(0.5, abs=0.064)
    x_BSD = torch.randn(3, 16, 32)
    assert not torch.allclose(block.attention(x_BSD, None), block.attention(x_BSD, None), atol=1e-2)
