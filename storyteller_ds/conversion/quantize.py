"""Quantize a checkpoint's weights to small integers with scales, and measure the cost in bits per byte."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.own_corpus import own_corpus
from storyteller_ds.checkpoint.quantized import quantized_tensors, stored_bytes
from storyteller_ds.checkpoint.read import Checkpoint, open_checkpoint
from storyteller_ds.checkpoint.write import Contents, check_new_run, write_weights_run
from storyteller_ds.config.data import DataConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.batches import BatchSplit, ValidationBatches
from storyteller_ds.data.batching.loading import validation_batches
from storyteller_ds.data.batching.micro_batch import IGNORED
from storyteller_ds.data.corpus import open_corpus, prepare_corpus
from storyteller_ds.errors import CheckpointError
from storyteller_ds.generation.load import load_decoder
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.quantized import bits_of, dequantize, quantize

_SEQUENCES = 8
"""Sequences in one forward pass."""


class Score(NamedTuple):
    """How well a model predicts a text."""

    bits_per_byte: float
    tokens: int
    """Number of predicted tokens."""


class QuantizedRun(NamedTuple):
    """What was written, and what it was made from."""

    checkpoint: Path
    text: str
    """The text that both were measured on."""
    scores: tuple[Score, Score]
    """Before and after."""
    bytes: tuple[int, int]
    """Size of the weights, before and after."""


@torch.no_grad()
def quantize_run(
    source: Path, bits: int, output_dir: Path, data: Path | None, device: torch.device, log: Callable[[str], None]
) -> QuantizedRun:
    """Write a run folder with a checkpoint of quantized weights, enough to generate and to export.

    Args:
        source: a run folder (its newest valid step) or a step folder; weights are enough.
        bits: 8 or 4; see model/quantized.py.
        output_dir: the run folder; must not exist.
        data: text file or folder to measure bits per byte on; None: the validation text of the run.
        device: where bits per byte are measured.
        log: gets a line about each step.

    Raises:
        UserError: the checkpoint or the text cannot be used, or the folder cannot be written.
    """
    check_new_run(output_dir)
    model = load_decoder(source, device, log)
    checkpoint = open_checkpoint(model.step_folder)
    if (stored := checkpoint.open_weights().bits) is not None:
        raise CheckpointError(f"{checkpoint.folder} has {stored} bits already; give the run that it was made from")
    run = model.run if data is None else _on(model.run, checkpoint, data)
    batches = _validation(run, checkpoint, log, is_given=data is not None)
    before = score(model.decoder, batches, run.train.eval_batches, device)
    weights = {name: parameter.detach() for name, parameter, *_ in placed_parameters(model.decoder)}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    tensors = {name: tensor.cpu() for name, tensor in quantized_tensors(weights, bits).items()}
    for name, of_name in bits_of(shapes, bits).items():
        weights[name].copy_(dequantize(quantize(weights[name], of_name)))
    after = score(model.decoder, batches, run.train.eval_batches, device)
    contents = Contents(
        trainer=checkpoint.read_json(names.TRAINER),
        config=checkpoint.read_json(names.CONFIG),
        tokenizer_json=model.tokenizer.to_json(),
        dataset_fingerprint=checkpoint.manifest.dataset_fingerprint,
        topology={"world_size": 1, "bits": bits},
        val_bpb=after.bits_per_byte if data is None else None,
        val_tokens=after.tokens if data is None else None,
    )
    folder = write_weights_run(output_dir, checkpoint.step, contents, tensors)
    sizes = stored_bytes(shapes, None), stored_bytes(shapes, bits)
    return QuantizedRun(folder, str(data or run.data.validation or run.data.source_name), (before, after), sizes)


@torch.no_grad()
def score(decoder: Decoder, batches: ValidationBatches, limit: int | None, device: torch.device) -> Score:
    """Bits per UTF-8 byte of the first `limit` global batches, or of all; like val_bpb of a run that trains in fp32."""
    nll, tokens = 0.0, 0
    for batch in batches.batches(limit):
        token_BS, target_BS, position_BS = batch.to(device)
        nll += float(decoder(token_BS, target_BS=target_BS, position_BS=position_BS)[0])
        tokens += int((batch.target_BS != IGNORED).sum())
    return Score(nll / math.log(2) / batches.text_bytes(limit), tokens)


def _on(run: RunConfig, checkpoint: Checkpoint, data: Path) -> RunConfig:
    """The run config with another text, tokenized with the model's tokenizer."""
    text, before = str(data.absolute()), run.data
    given = DataConfig(
        source=text,
        validation=text,
        sequence_length=before.sequence_length,
        packing=before.packing,
        document_mask=before.document_mask,
        cache_dir=before.cache_dir,
    )
    tokenizer = run.tokenizer.model_copy(update={"path": (checkpoint.folder / names.TOKENIZER).absolute()})
    return run.model_copy(update={"data": given, "tokenizer": tokenizer})


def _validation(
    run: RunConfig, checkpoint: Checkpoint, log: Callable[[str], None], is_given: bool
) -> ValidationBatches:
    """Batches of the validation text of a run.

    Raises:
        DataError: the text cannot be used, or no text was given and it is not what the checkpoint was validated on.
    """
    corpus = open_corpus(run, prepare_corpus(run, log)) if is_given else own_corpus(run, checkpoint, log)
    size = run.train.global_batch_size
    micro = math.gcd(size, _SEQUENCES)
    return validation_batches(run, corpus, BatchSplit(0, 1, micro, size // micro))
