"""A model ready to tell stories, from a checkpoint. Needs neither deepspeed nor a process group."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.read import find_checkpoint
from storyteller_ds.config.files import as_mapping
from storyteller_ds.config.load import parse_run_config
from storyteller_ds.console import lines_to, stderr_console
from storyteller_ds.data.tokenizer import load_tokenizer
from storyteller_ds.distributed.world import pick_device
from storyteller_ds.errors import CheckpointError
from storyteller_ds.generation.fast import fast_stepper
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import empty_decoder


def load(path: str | os.PathLike[str], device: str = "auto") -> StoryModel:
    """A model that tells stories.

    Args:
        path: a run folder (its newest valid step) or a step folder; weights are enough.
        device: auto, cpu, cuda or mps.

    Raises:
        CheckpointError: there is no valid checkpoint, or its files do not belong together.
        ConfigError, DataError: its config or its tokenizer cannot be used, or the device is not there.
    """
    return load_story_model(Path(path), pick_device(device, 0, "device"), lines_to(stderr_console()))


@torch.no_grad()
def load_story_model(path: Path, device: torch.device, log: Callable[[str], None]) -> StoryModel:
    """Load the decoder of a run folder (its newest valid step) or of a step folder, in fp32 and eval mode.

    Weights are enough: the optimizer's and the rng files may be missing.

    Raises:
        CheckpointError: there is no valid checkpoint, or its files do not belong together.
        ConfigError, DataError: its config or its tokenizer cannot be used.
    """
    checkpoint = find_checkpoint(path, log, names.WEIGHTS)
    config = checkpoint.folder / names.CONFIG
    run = parse_run_config(as_mapping(checkpoint.read_json(names.CONFIG).get("run"), str(config)), str(config))
    tokenizer = load_tokenizer(checkpoint.folder / names.TOKENIZER, "use another step")
    if tokenizer.vocab_size > run.tokenizer.vocab_size:
        raise CheckpointError(
            f"{checkpoint.folder}: its tokenizer has ids up to {tokenizer.vocab_size - 1}, and its model "
            f"{run.tokenizer.vocab_size} of them; use another step"
        )
    weights = checkpoint.open_tensors("weights")
    if run.model.num_layers > len(weights):  # whose modules alone could fill the memory
        raise CheckpointError(
            f"{config} has {run.model.num_layers} layers, more than there are tensors; do not trust it"
        )
    try:
        decoder = empty_decoder(run)
    except (RuntimeError, OverflowError, TypeError) as error:  # what torch raises for sizes beyond 64 bits
        raise CheckpointError(f"{config} describes a model that cannot be ({error}); do not trust it") from None
    # A config can promise any size; memory is taken only once the files have been seen to hold it.
    weights.check({name: tuple(parameter.shape) for name, parameter, *_ in placed_parameters(decoder)})
    decoder.to_empty(device=device)
    for name, parameter, *_ in placed_parameters(decoder):
        parameter.copy_(weights[name])
    decoder.eval()
    return StoryModel(decoder, run, tokenizer, checkpoint.folder, fast_stepper(decoder, run, log))
