"""One training step on the device against the same step on the CPU in fp64: the loss and the whole gradient."""

import sys
from typing import Any

import torch

from benchmarks.gpu_check.part import Options, run_part
from storyteller_ds.config import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.differences import differences, largest
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.loss import LossModule

ALONE = World(0, 0, 1, 1)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.03}
"""Largest relative difference of the loss, and of the gradient as one vector: some of its tensors, such as the biases
of keys, are nothing but rounding errors."""
ROUTED = 0.2
"""For experts in bf16: rounding may send a token to another expert, and there are only 256 tokens."""
SMALL = ("model.num_layers=2", "data.sequence_length=64", "tokenizer.vocab_size=512", "model.dropout=0")
MODELS = {
    "mixture": ("quickstart", ()),
    "dense": ("quickstart_dense", ()),
    "value embeddings, squared ReLU": ("nanochat_mixture", ("model.activation=relu2",)),
    "GELU, biases, LayerNorm": ("gpt2_small", ("model.hidden_size=128", "model.num_heads=4")),
    "GELU experts with biases": ("nanogpt_moe", ("model.bias=true", "moe.noisy_gating=false")),
}


def measure(options: Options) -> dict[str, Any]:
    """The differences of each model in each number format."""
    found: dict[str, Any] = {}
    for name, (preset, overrides) in MODELS.items():
        run = load_config(preset, [*SMALL, *overrides]).run
        expected = _loss_and_gradient(run, torch.device("cpu"), torch.float64)
        for dtype, tolerance in TOLERANCES.items():
            allowed = ROUTED if dtype == torch.bfloat16 and run.moe_layers else tolerance
            apart = differences(_loss_and_gradient(run, options.device, dtype), expected)
            found[f"{name}, {dtype}"] = {**apart, "passed": largest(apart)[1] <= allowed}
    return {"passed": all(each["passed"] for each in found.values()), "models": found}


def _loss_and_gradient(run: RunConfig, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    decoder = Decoder(run)
    init_parameters(decoder, run.model, run.seed)
    decoder.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    decoder.dtype = dtype
    module = LossModule(decoder, run.moe, ALONE.all_reduce_sum, 1)
    shape = (4, run.data.sequence_length + 1)
    token = torch.randint(run.tokenizer.vocab_size, shape, generator=torch.Generator().manual_seed(1)).to(device)
    loss, _ = module(token[:, :-1].contiguous(), token[:, 1:].contiguous(), token[:, 1:].numel(), 1)
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in decoder.parameters() if parameter.grad is not None]
    return {"loss": loss.detach().cpu(), "gradient": torch.cat(gradients).cpu()}


if __name__ == "__main__":
    sys.exit(0 if run_part("parity", measure)["passed"] else 1)
