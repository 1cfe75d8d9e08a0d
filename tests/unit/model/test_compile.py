"""Blocks under torch.compile have no graph breaks, match eager ones, and do not recompile when counts change."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from storyteller_ds.config.files import preset_names
from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.loss import LossModule
from tests.support.small_engine import small_preset
from tests.support.tolerances import EXACT, SIMPLE, assert_within

MODELS: dict[str, dict[str, Any]] = {
    "dense": {"moe": {"num_experts": 0}},
    "mixture": {},
    "noise, balance by sequence": {"moe": {"noisy_gating": True, "balance_scope": "sequence"}},
    "every second layer": {"model": {"num_layers": 4}, "moe": {"every_n_layers": 2}},
    "GELU, biases, LayerNorm, learned positions": {
        "model": {"activation": "gelu", "bias": True, "norm": "layernorm", "position": "learned"}
    },
    "all of nanochat": {
        "model": {
            "activation": "relu2",
            "qk_norm": True,
            "tie_embeddings": False,
            "value_embeddings": True,
            "residual_scales": True,
            "logit_softcap": 15.0,
        }
    },
    "grouped heads, blocks again": {"model": {"num_kv_heads": 1, "activation_checkpointing": "block"}},
    "products kept": {"model": {"activation_checkpointing": "selective"}},
}
SIZES = {"hidden_size": 32, "num_layers": 3, "num_heads": 2, "intermediate_size": 16, "dropout": 0.0}


def loss_module(settings: dict[str, Any]) -> LossModule:
    run = RunConfig.model_validate(
        {
            "model": {**SIZES, **settings.get("model", {})},
            "moe": {"num_experts": 4, "top_k": 2, **settings.get("moe", {})},
            "data": {"sequence_length": 16},
            "tokenizer": {"vocab_size": 64},
        }
    )
    decoder = Decoder(run)
    init_parameters(decoder, run.model, 1)
    return LossModule(decoder, run.moe, lambda tensor: tensor, 1).train()


def passed(module: LossModule, seed: int) -> dict[str, Tensor]:
    """Return the loss and all gradients."""
    token = torch.randint(64, (3, 17), generator=torch.Generator().manual_seed(seed))
    position = torch.arange(16).expand(3, 16) % 7
    torch.manual_seed(seed)
    loss, _ = module(token[:, :-1].contiguous(), token[:, 1:].contiguous(), 48, 1, position)
    module.zero_grad()
    loss.backward()
    return {"loss": loss.detach()} | {
        name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_whole_blocks_compile_to_the_same_numbers(settings, backend):
    torch._dynamo.reset()
    compiled, eager = loss_module(settings), loss_module(settings)
    counter = CompileCounterWithBackend(backend)
    compiled.decoder.run_block.compile(counter)
    for seed in range(3):
        ours, expected = passed(compiled, seed), passed(eager, seed)
        assert ours.keys() == expected.keys()
        for name, tensor in expected.items():
            assert_within(ours[name], tensor, SIMPLE)
        if seed == 0:
            graphs = counter.frame_count
    assert 1 <= graphs <= 3, "blocks that are alike share their code"
    assert counter.frame_count == graphs, "compiled again for other experts"


@pytest.mark.parametrize("name", preset_names())
def test_the_blocks_of_every_preset_compile_whole(name):
    torch._dynamo.reset()
    run = small_preset(name)
    token_BS = torch.randint(run.tokenizer.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    losses = []
    for compiled in (True, False):
        decoder = Decoder(run)
        init_parameters(decoder, run.model, 1)
        module = LossModule(decoder, run.moe, lambda tensor: tensor, 1)
        counter = CompileCounterWithBackend("eager")
        if compiled:
            decoder.run_block.compile(counter)
        torch.manual_seed(2)  # for dropout and noise
        loss, _ = module(token_BS[:, :-1].contiguous(), token_BS[:, 1:].contiguous(), 16, 1, None)
        loss.backward()
        assert (counter.frame_count > 0) == compiled
        losses.append(loss.detach())
    assert_within(*losses, SIMPLE)


@torch.no_grad()
def test_more_models_than_torch_compiles_variants_of_a_function_follow_each_other():
    torch._dynamo.reset()
    for number in range(1, torch._dynamo.config.recompile_limit + 3):
        module = loss_module({"model": {"hidden_size": 8 * number, "num_layers": 1}})
        counter = CompileCounterWithBackend("eager")
        module.decoder.run_block.compile(counter)
        module.decoder(torch.zeros(1, 4, dtype=torch.int64))
        assert counter.frame_count == 1


@torch.no_grad()
def test_a_model_with_more_variants_than_there_may_be_is_warned_of(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr("storyteller_ds.model.activation_checkpointing._VARIANTS", 2)
    for is_needed in (True, False):
        module, eager = loss_module({}), loss_module({})
        module.decoder.run_block.compile("eager", is_needed)
        tokens = [torch.zeros(1, length, dtype=torch.int64) for length in (3, 4, 5)]
        for token_BS in tokens[:2]:
            module.decoder(token_BS)
        if is_needed:
            with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
                module.decoder(tokens[2])
        else:
            with pytest.warns(RuntimeWarning, match="blocks are not compiled, which is slower"):
                logits = module.decoder(tokens[2])[0]
            assert_within(logits, eager.decoder(tokens[2])[0], EXACT)


def broken(*_: Any) -> Any:
    raise ValueError("no compiler here")


def test_a_compiler_that_fails_is_raised_where_it_is_needed_and_else_warned_of():
    torch._dynamo.reset()
    module, eager = loss_module({}), loss_module({})
    module.decoder.run_block.compile(broken)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="no compiler here"):
        passed(module, 0)
    module.decoder.run_block.compile(broken, is_needed=False)
    with pytest.warns(RuntimeWarning, match="blocks are not compiled, which is slower"):
        ours = passed(module, 0)
    for name, tensor in passed(eager, 0).items():
        assert_within(ours[name], tensor, EXACT)
