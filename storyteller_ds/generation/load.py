"""Loading a model from a checkpoint to generate with it; needs neither deepspeed nor a process group."""

from collections.abc import Callable
from pathlib import Path

import torch

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.read import find_checkpoint
from storyteller_ds.config.files import as_mapping
from storyteller_ds.config.load import parse_run_config
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.errors import CheckpointError
from storyteller_ds.generation.fast import is_fast
from storyteller_ds.generation.fastest import Precision, fastest_stepper, weights_dtype
from storyteller_ds.generation.fit import held_bits
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import empty_decoder
from storyteller_ds.model.quantized import bits_of, fill, hold_quantized


def load_story_model(
    path: Path, device: torch.device, log: Callable[[str], None], precision: Precision = "auto"
) -> StoryModel:
    """Load a model with the fastest available stepper; see load_decoder."""
    as_stored = is_fast(device) and precision != "bf16"
    model = load_decoder(path, device, log, as_stored, precision)
    return model._replace(stepper=fastest_stepper(model.decoder, model.run, log))


@torch.no_grad()
def load_decoder(
    path: Path,
    device: torch.device,
    log: Callable[[str], None],
    as_stored: bool = False,
    precision: Precision = "fp32",
) -> StoryModel:
    """Load the decoder of a run folder (its newest valid step) or of a step folder, in eval mode.

    Weights are enough: the optimizer and rng files may be missing. Weights are loaded in the dtype of weights_dtype;
    quantized ones are dequantized. If they would not fit then, or with `as_stored`, the decoder holds them quantized
    and dequantizes each when it uses it.

    Raises:
        CheckpointError: there is no valid checkpoint, or its files do not match.
        ConfigError, DataError: its config or its tokenizer cannot be used.
        OutOfMemory: the weights do not fit.
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
    weights = checkpoint.open_weights()
    if run.model.num_layers > len(weights):  # the modules alone could fill the memory
        raise CheckpointError(
            f"{config} has {run.model.num_layers} layers, more than there are tensors; do not trust it"
        )
    try:
        decoder = empty_decoder(run)
    except (RuntimeError, OverflowError, TypeError) as error:  # what torch raises for sizes beyond 64 bits
        raise CheckpointError(f"{config} describes a model that cannot be ({error}); do not trust it") from None
    # A config can claim any size; memory is allocated only after checking that the files hold it.
    shapes = {name: tuple(parameter.shape) for name, parameter, *_ in placed_parameters(decoder)}
    weights.check(shapes)
    dtype = weights_dtype(run, device, precision)
    if bits := held_bits(shapes, weights.bits, device, as_stored, checkpoint.folder, log, dtype):
        hold_quantized(decoder, bits_of(shapes, bits))
    else:
        decoder.to(dtype)
    decoder.to_empty(device=device)
    for name in shapes:
        fill(decoder, name, weights.stored(name))
    decoder.eval()
    return StoryModel(decoder, run, tokenizer, checkpoint.folder)
