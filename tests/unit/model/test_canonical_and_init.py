"""Canonical names and shapes, and initial weights that depend on seed and name alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.canonical import (
    Part,
    canonical_name,
    is_decayed,
    is_embedding,
    is_expert,
    join_pieces,
    pieces_by_name,
    placed_parameters,
)
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.loss import LossModule
from storyteller_ds.model.moe.experts import StackedExperts
from storyteller_ds.model.moe.local import LocalMoE
from tests.support.tolerances import EXACT, assert_within

D, I, E, V, S = 32, 24, 4, 61, 16

MIXTURE_SHAPES = {
    "embedding.weight": (V, D),
    "blocks.0.attention_norm.weight": (D,),
    "blocks.0.attention.q_proj.weight": (D, D),
    "blocks.0.attention.k_proj.weight": (D // 2, D),
    "blocks.0.attention.v_proj.weight": (D // 2, D),
    "blocks.0.attention.o_proj.weight": (D, D),
    "blocks.0.ffn_norm.weight": (D,),
    "blocks.0.ffn.router.weight": (E, D),
    "blocks.0.ffn.experts.gate_up_proj": (E, 2 * I, D),
    "blocks.0.ffn.experts.down_proj": (E, D, I),
    "final_norm.weight": (D,),
}
GPT2_SHAPES = {
    "embedding.weight": (V, D),
    "position_embedding.weight": (S, D),
    **{f"blocks.0.{norm}.{part}": (D,) for norm in ("attention_norm", "ffn_norm") for part in ("weight", "bias")},
    **{f"blocks.0.attention.{p}_proj.weight": (D, D) for p in "qkvo"},
    **{f"blocks.0.attention.{p}_proj.bias": (D,) for p in "qkvo"},
    "blocks.0.ffn.gate_up_proj.weight": (I, D),
    "blocks.0.ffn.gate_up_proj.bias": (I,),
    "blocks.0.ffn.down_proj.weight": (D, I),
    "blocks.0.ffn.down_proj.bias": (D,),
    "final_norm.weight": (D,),
    "final_norm.bias": (D,),
    "lm_head.weight": (V, D),
}
SCALE, VALUES = "blocks.0.residual.scale", "blocks.0.attention.value_embedding.embedding.weight"
GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True, "tie_embeddings": False}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter, *_ in placed_parameters(module)}


def initial(run: RunConfig, seed: int = 0, **arguments: object) -> dict[str, Tensor]:
    decoder = Decoder(run, **arguments)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.fill_(float("nan"))
    init_parameters(decoder, run.model, seed)
    return {name: parameter.detach() for name, parameter, *_ in placed_parameters(decoder)}


def test_names_and_shapes_of_an_moe_model(make_run):
    run = make_run({"num_layers": 1, "num_kv_heads": 2})
    assert shapes(Decoder(run)) == MIXTURE_SHAPES


def test_names_and_shapes_of_gpt2(make_run):
    assert shapes(Decoder(make_run({"num_layers": 1, **GPT2}, {"num_experts": 0}))) == GPT2_SHAPES


def test_names_and_shapes_of_the_rest(make_run):
    run = make_run({"num_layers": 1, "bias": True, "activation": "relu"}, {"noisy_gating": True})
    found = shapes(Decoder(run))
    assert found["blocks.0.ffn.router.noise_weight"] == (E, D)
    assert found["blocks.0.ffn.experts.gate_up_proj"] == (E, I, D)
    assert found["blocks.0.ffn.experts.gate_up_bias"] == (E, I)
    assert found["blocks.0.ffn.experts.down_bias"] == (E, D)


def test_wrappers_do_not_change_names(make_run):
    run = make_run({"num_layers": 1, "num_kv_heads": 2})
    loss_module = LossModule(Decoder(run), run.moe, lambda packed: packed, 1)
    assert shapes(loss_module) == MIXTURE_SHAPES
    holder = nn.Module()
    holder.module = loss_module
    assert shapes(holder) == MIXTURE_SHAPES
    assert canonical_name("module.decoder.blocks.0.ffn.router.weight") == "blocks.0.ffn.router.weight"


def test_what_is_an_expert_and_what_is_decayed():
    names = (
        MIXTURE_SHAPES
        | GPT2_SHAPES
        | dict.fromkeys(["blocks.0.ffn.experts.down_bias", "blocks.0.ffn.router.noise_weight", SCALE, VALUES], ())
    )
    assert {name for name in names if is_expert(name)} == {
        f"blocks.0.ffn.experts.{part}" for part in ("gate_up_proj", "down_proj", "down_bias")
    }
    plain = {name for name in names if "norm." in name or name.endswith("bias")} | {SCALE}
    assert {name for name in names if not is_decayed(name)} == plain
    assert {name for name in names if is_embedding(name)} == {"embedding.weight", VALUES}


def test_placed_parameters_know_their_first_expert(make_run):
    for name, _, first, _ in placed_parameters(Decoder(make_run()), first_expert=12):
        assert first == (12 if ".experts." in name else None)


class SomeExperts(LocalMoE):
    """The layer that one of two ranks holds: the router and half of the experts."""

    def __init__(self, model: ModelConfig, moe: MoEConfig) -> None:
        super().__init__(model, moe)
        self.experts = StackedExperts(model, moe.num_experts // 2)


@pytest.mark.parametrize("first", [0, 4])
def test_a_rank_makes_the_rows_of_the_full_initialization(make_run, first):
    run = make_run({}, {"num_experts": 8})
    full = initial(run, seed=3)
    part = Decoder(run, SomeExperts)
    init_parameters(part, run.model, 3, first_expert=first)
    for name, parameter, *_ in placed_parameters(part):
        expected = full[name][first : first + 4] if is_expert(name) else full[name]
        assert_within(parameter, expected, EXACT)
    experts = dict(part.named_parameters())["blocks.0.ffn.experts.down_proj"]
    assert not torch.equal(experts, full["blocks.0.ffn.experts.down_proj"][4 - first : 8 - first])


def test_the_same_seed_gives_the_same_numbers_whatever_came_before(make_run):
    run = make_run({**GPT2, "activation": "swiglu"}, {"noisy_gating": True})
    first = initial(run, seed=5)
    torch.manual_seed(123)
    torch.randn(17)
    state = torch.random.get_rng_state()
    wrapped = LossModule(Decoder(run), run.moe, lambda packed: packed, 1)
    torch.random.set_rng_state(state)
    init_parameters(wrapped, run.model, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, parameter, *_ in placed_parameters(wrapped):
        assert_within(parameter, first[name], EXACT)


def test_seeds_names_and_experts_all_differ(make_run):
    values = [t for seed in (0, 1, 2**62) for t in initial(make_run(), seed).values() if t.dim() > 1]
    rows = [row for t in values for row in (t if t.dim() == 3 else [t])]
    # Ratios of each stream's first numbers: a stream used twice would repeat them for every shape and scale.
    ratios = {tuple((row.flatten()[1:4] / row.flatten()[0]).tolist()) for row in rows}
    assert len(ratios) == len(rows)


def test_depth_and_neighbors_do_not_matter(make_run):
    small, deep = initial(make_run()), initial(make_run({"num_layers": 4}, {"num_experts": 8}))
    for name in ("embedding.weight", "blocks.1.attention.q_proj.weight"):
        assert_within(deep[name], small[name], EXACT)
    assert_within(
        deep["blocks.0.ffn.experts.gate_up_proj"][:4],
        small["blocks.0.ffn.experts.gate_up_proj"],
        EXACT,
    )


@pytest.mark.parametrize("moe", [{"num_experts": 0}, {"noisy_gating": True}], ids=str)
def test_distributions_are_as_documented(make_run, moe):
    model = {**GPT2, "hidden_size": 64, "intermediate_size": 128, "num_layers": 3, "init_std": 0.05}
    for name, tensor in initial(make_run(model, moe)).items():
        if name.endswith(("bias", "noise_weight")):
            assert not tensor.any()
        elif "norm." in name:
            assert torch.equal(tensor, torch.ones_like(tensor))
        else:
            is_output = "o_proj" in name or "down_proj" in name
            std = 0.05 / math.sqrt(2 * 3) if is_output else 0.05
            count = tensor.numel()
            # Within five standard deviations of the estimates.
            assert float(tensor.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * count))
            assert abs(float(tensor.mean())) < 5 * std / math.sqrt(count)
            assert 3 * std < float(tensor.abs().max()) < 6 * std or count < 1000


class InPieces(nn.Module):
    """Half of a layer's experts, with a separate parameter for each expert's gate and up projection."""

    def __init__(self) -> None:
        super().__init__()
        self.single = nn.ParameterDict(
            {f"{part}_{e}": nn.Parameter(torch.empty(1, I, D)) for part in ("up", "gate") for e in (1, 0)}
        )

    def canonical_part(self, name: str) -> Part:
        part, expert = name.removeprefix("single.").split("_")
        return Part("experts.gate_up_proj", expert=int(expert), row=I if part == "up" else 0)


def test_a_tensor_held_in_pieces_is_put_together_and_taken_apart():
    model = nn.ModuleDict({"ffn": InPieces()})
    whole = torch.arange(E * 2 * I * D, dtype=torch.float32).view(E, 2 * I, D)
    pieces = pieces_by_name(placed_parameters(model, first_expert=2))
    assert list(pieces) == ["ffn.experts.gate_up_proj"]
    with torch.no_grad():
        for piece in pieces["ffn.experts.gate_up_proj"]:
            piece.parameter.copy_(piece.slice_of(whole))
    held = model["ffn"].single
    assert torch.equal(held["gate_0"], whole[2:3, :I])
    assert torch.equal(held["up_1"], whole[3:4, I:])
    joined = join_pieces((piece, piece.parameter.detach()) for piece in pieces["ffn.experts.gate_up_proj"])
    assert torch.equal(joined, whole[2:4])
