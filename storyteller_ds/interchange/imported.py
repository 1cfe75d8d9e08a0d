"""A model read from the files of another tool."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import Decoder, empty_decoder


class Imported(NamedTuple):
    """What was read from another tool's files."""

    decoder: Decoder
    """In eval mode, fp32."""
    run: RunConfig
    tokenizer: Tokenizer


@torch.no_grad()
def decoder_with(run: RunConfig, read: Callable[[dict[str, tuple[int, ...]]], dict[str, Tensor]]) -> Decoder:
    """A decoder with the weights that `read` returns.

    Args:
        run: its config.
        read: maps the shapes of all canonical tensors to the tensors, fp32.
    """
    decoder = empty_decoder(run)
    weights = read({name: tuple(parameter.shape) for name, parameter, *_ in placed_parameters(decoder)})
    decoder.to_empty(device="cpu")
    for name, parameter, *_ in placed_parameters(decoder):
        parameter.copy_(weights[name])
    return decoder.eval()
