"""Turn a dense model into an initial MoE model: sparse upcycling (Komatsuzaki et al. 2023, 2212.05055)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.read import find_checkpoint
from storyteller_ds.checkpoint.write import Contents, check_new_run, write_weights_run
from storyteller_ds.config.files import as_mapping
from storyteller_ds.config.load import parse_run_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import empty_decoder
from storyteller_ds.model.init import init_parameters, normal

_DENSE_NAME = {
    "experts.gate_up_proj": "gate_up_proj.weight",
    "experts.gate_up_bias": "gate_up_proj.bias",
    "experts.down_proj": "down_proj.weight",
    "experts.down_bias": "down_proj.bias",
}
"""Expert parameter -> dense parameter that it is copied from."""


def upcycle(
    source: Path,
    output_dir: Path,
    experts: dict[str, int],
    noise: float,
    seed: int,
    log: Callable[[str], None],
) -> Path:
    """Write a checkpoint of an MoE model whose experts are copies of a dense model's FFN layers, with a new router.

    The gate weights of a token sum to 1, so without noise the MoE model computes what the dense model does.

    Args:
        source: run folder (its newest valid step) or step folder of the dense model.
        output_dir: run folder to write; must not exist.
        experts: fields of the moe section: num_experts, top_k, every_n_layers.
        noise: standard deviation of the noise added to each expert matrix, as a fraction of the standard deviation of
            the matrix.
        seed: seed of router and noise.
        log: gets a line about each step that is skipped.

    Returns:
        The step folder.

    Raises:
        CheckpointError: there is no valid checkpoint, or the new one could not be written.
        ConfigError, UserError: the model is an MoE model already, no such MoE model is possible, or output_dir exists.
    """
    check_new_run(output_dir)
    if not math.isfinite(noise):  # range checks let it pass
        raise UserError(f"--noise {noise}: give a part of the weights' standard deviation, as 0.02")
    checkpoint = find_checkpoint(source, log, names.WEIGHTS)
    config = str(checkpoint.folder / names.CONFIG)
    settings: dict[str, Any] = as_mapping(checkpoint.read_json(names.CONFIG).get("run"), config)
    if parse_run_config(settings, config).moe_layers:
        raise UserError(f"{checkpoint.folder} is a mixture of experts already; give a dense model")
    run = parse_run_config({**settings, "moe": {**settings.get("moe", {}), **experts}}, "--num_experts and --top_k")
    if not run.moe_layers:
        raise UserError(f"moe.every_n_layers={run.moe.every_n_layers}: no layer would have experts; lower it")
    dense = checkpoint.open_weights()
    tokenizer = load_tokenizer(checkpoint.folder / names.TOKENIZER, "use another step")
    contents = Contents.of_model(run, tokenizer.to_json())
    return write_weights_run(output_dir, 0, contents, _mixture(run, dense.__getitem__, noise, seed))


@torch.no_grad()
def _mixture(run: RunConfig, dense: Callable[[str], Tensor], noise: float, seed: int) -> dict[str, Tensor]:
    """Canonical tensors of the MoE model.

    Args:
        run: run config of the MoE model.
        dense: returns the dense model's tensor with a canonical name.
        noise: see upcycle.
        seed: likewise.
    """
    decoder = empty_decoder(run).to_empty(device="cpu")
    init_parameters(decoder, run.model, seed)  # all but the routers are overwritten below
    weights = {}
    for name, parameter, *_ in placed_parameters(decoder):
        block, _, part = name.partition(".ffn.")
        if part in _DENSE_NAME:
            parameter.copy_(dense(f"{block}.ffn.{_DENSE_NAME[part]}"))  # to every expert
            if noise and part.endswith("proj"):
                parameter.add_(noise * parameter.std() * normal(parameter.shape, 1.0, seed, f"upcycle/{name}"))
        elif not part.startswith("router."):
            parameter.copy_(dense(name))
        weights[name] = parameter.detach()
    return weights
