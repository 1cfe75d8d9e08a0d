"""Small models that prefer some tokens to others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.decoder import Decoder

CONTEXT, VOCAB = 24, 41
KINDS: dict[str, dict[str, Any]] = {
    "dense rope": {"moe": {"num_experts": 0}},
    "dense learned": {"moe": {"num_experts": 0}, "model": {"position": "learned", "norm": "layernorm"}},
    "mixture rope": {"model": {"num_kv_heads": 2}},
    "mixture like nanochat": {
        "model": {"activation": "relu2", "logit_softcap": 9.0, "value_embeddings": True, "residual_scales": True}
    },
    "mixture learned": {"model": {"position": "learned"}, "moe": {"top_k": 1, "num_experts": 8}},
}


@pytest.fixture
def make_model() -> Callable[[str], tuple[Decoder, RunConfig]]:
    """Build a decoder of a kind, in eval mode, with large random weights."""

    @torch.no_grad()
    def make(kind: str) -> tuple[Decoder, RunConfig]:
        settings = KINDS[kind]
        sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
        run = RunConfig.model_validate({
            "model": {**sizes, **settings.get("model", {})},
            "moe": {"num_experts": 4, **settings.get("moe", {})},
            "data": {"sequence_length": CONTEXT},
            "tokenizer": {"vocab_size": VOCAB},
        })  # fmt: skip
        decoder = Decoder(run).eval()
        generator = torch.Generator().manual_seed(12)
        for name, parameter in decoder.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm." in name))
        return decoder, run

    return make
