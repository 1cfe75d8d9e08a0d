"""Reading another tool's model, into a run folder or to generate with it."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from storyteller_ds.checkpoint.read import is_of_another_tool
from storyteller_ds.checkpoint.write import Contents, check_new_run, write_weights_run
from storyteller_ds.console import lines_to, stderr_console
from storyteller_ds.data.tokenizers.llama2c import read_tokenizer
from storyteller_ds.distributed.world import pick_device
from storyteller_ds.errors import UserError
from storyteller_ds.generation.fastest import Precision, fastest_stepper, weights_dtype
from storyteller_ds.generation.load import load_story_model
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.huggingface.load import read_folder
from storyteller_ds.interchange.imported import Imported
from storyteller_ds.interchange.llama2c.model_file import read_model
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.user_paths import given_path


def load(path: str | os.PathLike[str], device: str = "auto", precision: Precision = "auto") -> StoryModel:
    """Load a model that generates stories.

    Args:
        path: a run folder (its newest valid step), a step folder (weights are enough), or an export to Hugging Face.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: precision of weights and matrix products, fp32 or bf16; auto: that of training on a CUDA device, else
            fp32.

    Raises:
        CheckpointError: there is no valid checkpoint, or its files do not match.
        ConfigError, DataError: its config or its tokenizer cannot be used, or the device is not available.
        OutOfMemory: the weights do not fit the device.
        UserError: an export cannot be read.
    """
    return open_model(
        given_path(path, "path"), pick_device(device, None, "device"), lines_to(stderr_console()), precision
    )


def open_model(
    path: Path, device: torch.device, log: Callable[[str], None], precision: Precision = "auto"
) -> StoryModel:
    """Like load, for a given device and log.

    Args:
        path: see load.
        device: where the model is computed.
        log: gets a line about each step that is skipped.
        precision: see load.
    """
    if not is_of_another_tool(path):
        return load_story_model(path, device, log, precision)
    imported = read_folder(path)
    _warn_of_another_tokenizer(imported, path, log)
    decoder = imported.decoder.to(device, weights_dtype(imported.run, device, precision))
    stepper = fastest_stepper(decoder, imported.run, log)
    return StoryModel(decoder, imported.run, imported.tokenizer, path, stepper)


def import_model(form: str, source: Path, tokenizer: Path | None, output_dir: Path) -> Path:
    """Write a checkpoint with the weights of another tool's model; returns its folder.

    Args:
        form: hf or llama2c.
        source: a Hugging Face folder, or the model.bin of llama2.c.
        tokenizer: the tokenizer.bin of llama2.c; None: the one beside the model.
        output_dir: run folder; must not exist.

    Raises:
        UserError: the model cannot be read or is not supported, or the folder cannot be written.
    """
    check_new_run(output_dir)
    if form == "hf":
        if tokenizer is not None:
            raise UserError("--tokenizer is for --from llama2c; a folder of Hugging Face's has its own")
        model = read_folder(source)
        _warn_of_another_tokenizer(model, source, lines_to(stderr_console()))
    else:
        model = _read_llama2c(source, tokenizer or source.with_name("tokenizer.bin"))
    contents = Contents.of_model(model.run, model.tokenizer.to_json())
    weights = {placed.name: placed.parameter.detach() for placed in placed_parameters(model.decoder)}
    return write_weights_run(output_dir, 0, contents, weights)


def _warn_of_another_tokenizer(model: Imported, folder: Path, log: Callable[[str], None]) -> None:
    """Warn if most rows of the model have no token: a few spare rows are normal, but not so many."""
    tokens, rows = model.tokenizer.vocab_size, model.run.tokenizer.vocab_size
    if tokens < rows / 2:
        log(
            f"{folder}: its tokenizer has {tokens:,} tokens, and the model rows for {rows:,}; if it tells nonsense, "
            "the tokenizer is another model's"
        )


def _read_llama2c(source: Path, tokenizer_file: Path) -> Imported:
    fix = "give the tokenizer.bin that belongs to the model with --tokenizer"
    tokenizer = read_tokenizer(tokenizer_file, fix)
    run, decoder = read_model(source)
    if tokenizer.vocab_size != run.tokenizer.vocab_size:
        raise UserError(
            f"{tokenizer_file} has {tokenizer.vocab_size} tokens and {source} {run.tokenizer.vocab_size}; {fix}"
        )
    return Imported(decoder, run, tokenizer)
