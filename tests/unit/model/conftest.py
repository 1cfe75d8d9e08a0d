"""Small models with random weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.decoder import Decoder

VOCAB = 61


def run_of(model: dict[str, Any] | None = None, moe: dict[str, Any] | None = None, length: int = 16) -> RunConfig:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
    return RunConfig.model_validate({
        "model": {**sizes, **(model or {})},
        "moe": {"num_experts": 4, "top_k": 2, **(moe or {})},
        "data": {"sequence_length": length},
        "tokenizer": {"vocab_size": VOCAB},
    })  # fmt: skip


@torch.no_grad()
def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a module with large random weights, gains and biases, so that a wrong one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1.0)
    return module


@pytest.fixture
def make_run() -> Callable[..., RunConfig]:
    """Build a run config from model and moe settings; 4 experts, top 2, by default."""
    return run_of


@pytest.fixture
def fill() -> Callable[..., nn.Module]:
    """Fill a module with large random weights."""
    return filled


@pytest.fixture
def make_decoder() -> Callable[..., Decoder]:
    """Build a decoder with large random weights, in eval mode."""

    def make(run: RunConfig, seed: int = 0) -> Decoder:
        decoder = filled(Decoder(run), seed).eval()
        assert isinstance(decoder, Decoder)
        return decoder

    return make


@pytest.fixture(name="token_BS")
def three_sequences() -> Tensor:
    """Three sequences as long as the context."""
    return torch.randint(VOCAB, (3, 16), generator=torch.Generator().manual_seed(7))
