"""Checkpoints of quantized weights, written without measuring quality."""

from pathlib import Path

import torch

from storyteller_ds.checkpoint.names import CHECKPOINTS
from storyteller_ds.checkpoint.quantized import quantized_tensors
from storyteller_ds.checkpoint.write import Contents, write_weights
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import Decoder


def write_quantized(folder: Path, run: RunConfig, decoder: Decoder, bits: int | None) -> Path:
    """Write a decoder's weights to `folder/checkpoints`, in fp32 if bits is None; returns the step folder."""
    weights: dict[str, torch.Tensor] = {name: p.detach().clone() for name, p, *_ in placed_parameters(decoder)}
    (folder / CHECKPOINTS).mkdir(parents=True)
    contents = Contents(
        trainer={},
        config={"run": run.model_dump(mode="json")},
        tokenizer_json=train_tokenizer(run.tokenizer, ["Once there was a fox."] * 3).to_json(),
        dataset_fingerprint="",
        topology={"world_size": 1},
    )
    return write_weights(folder / CHECKPOINTS, 1, contents, quantized_tensors(weights, bits) if bits else weights)
