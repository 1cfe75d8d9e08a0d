"""Which parameters share their settings, and their learning rates."""

import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.optim.optimizer import build_optimizer, muon_stacks, parameter_groups, set_step

RATIO, OUTPUT_RATIO = 7.0, 0.5
EMBEDDINGS = ("embedding.weight", "blocks.0.attention.value_embedding.embedding.weight")


def built(
    kind: str, ratio: float, output_ratio: float = OUTPUT_RATIO, **settings: object
) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    run = RunConfig.model_validate({
        "model": {
            **{"hidden_size": 16, "num_layers": 1, "num_heads": 2, "tie_embeddings": False, "qk_norm": True},
            **{"value_embeddings": True, "residual_scales": True},
        },
        "optimizer": {
            **{"kind": kind, "embedding_lr_ratio": ratio, "output_lr_ratio": output_ratio, "weight_decay": 0.2},
            **settings,
        },
        "tokenizer": {"vocab_size": 32},
    })  # fmt: skip
    decoder = Decoder(run)
    init_parameters(decoder, run.model, seed=0)
    groups = parameter_groups(decoder, run.optimizer, muon_stacks(decoder, run))
    return {name: p for name, p, *_ in placed_parameters(decoder)}, build_optimizer(groups, run.optimizer)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_with_its_settings(kind):
    parameters, optimizer = built(kind, RATIO)
    set_step(optimizer, 0.5, 1)
    found = {p: group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)
    for name, parameter in parameters.items():
        ratio = RATIO if name in EMBEDDINGS else OUTPUT_RATIO if name == "lm_head.weight" else 1.0
        assert found[parameter]["lr"] == 0.5 * ratio, name
        plain = "norm" in name or "scale" in name
        assert found[parameter]["weight_decay"] == (0.0 if plain else 0.2), name
    assert set(EMBEDDINGS) < parameters.keys()
    gains = [name for name in parameters if "norm" in name]
    assert {"blocks.0.attention.q_norm.weight", "final_norm.weight"} <= set(gains)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_without_a_ratio_there_are_no_more_groups_than_kinds(kind):
    parameters, optimizer = built(kind, 1.0, 1.0)
    assert len(optimizer.param_groups) == {"adamw": 2, "muon": 3}[kind]
    decayed = next(group for group in optimizer.param_groups if group["name"] == "decayed")
    assert any(p is parameters["embedding.weight"] for p in decayed["params"])


def test_adamw_moves_a_row_by_the_rate_of_its_group():
    parameters, optimizer = built("adamw", RATIO)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    set_step(optimizer, 1e-3, 1)
    optimizer.step()
    for name, rate in (("embedding.weight", 7e-3), ("lm_head.weight", 1e-3 * OUTPUT_RATIO)):
        # AdamW's first step, after the decay, is the learning rate.
        torch.testing.assert_close(parameters[name].detach(), before[name] * (1 - 0.2 * rate) - rate, rtol=0, atol=1e-6)


def test_only_the_matrices_of_experts_have_a_period():
    parameters, optimizer = built("muon", RATIO, expert_period=3)
    periods = {p: group["period"] for group in optimizer.param_groups for p in group["params"]}
    experts = {f"blocks.0.ffn.experts.{name}" for name in ("gate_up_proj", "down_proj")}
    assert {name: periods[p] for name, p in parameters.items()} == {n: 3 if n in experts else 1 for n in parameters}
