"""A model ready to tell stories, from a checkpoint. Needs neither deepspeed nor a process group."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from storyteller_ds.checkpoint import format as layout
from storyteller_ds.checkpoint.resume import find_checkpoint
from storyteller_ds.config.load import parse_run_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizer import Tokenizer, load_tokenizer
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.layout import placed_parameters


class StoryModel(NamedTuple):
    """What is needed to continue a text."""

    decoder: Decoder
    run: RunConfig
    tokenizer: Tokenizer
    step_folder: Path


@torch.no_grad()
def load_story_model(path: Path, device: torch.device, say: Callable[[str], None]) -> StoryModel:
    """Load the decoder of a run folder (its newest valid step) or of a step folder, in fp32 and eval mode.

    Raises:
        CheckpointError: there is no valid checkpoint.
    """
    checkpoint = find_checkpoint(path, say)
    run = parse_run_config(checkpoint.read_json(layout.CONFIG)["run"], str(checkpoint.folder / layout.CONFIG))
    with torch.device("meta"):
        decoder = Decoder(run)
    decoder.to_empty(device=device)
    weights = checkpoint.open_tensors("weights")
    for name, parameter, *_ in placed_parameters(decoder):
        parameter.copy_(weights[name])
    decoder.eval()
    return StoryModel(decoder, run, load_tokenizer(checkpoint.folder / layout.TOKENIZER), checkpoint.folder)
