"""Continuing a text, token by token."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizer import Tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.generation.kv_cache import KVCache, make_caches
from storyteller_ds.generation.sampling import SamplingConfig, sample
from storyteller_ds.model.decoder import Decoder

_CACHED_AT_FIRST = 256
"""Positions that a cache has room for before it grows: a context may be far longer than any story (tokens)."""


def most_new_ids(decoder: Decoder, prompt: Sequence[int], config: SamplingConfig) -> int:
    """How many ids can follow the prompt at most: max_new_tokens, or fewer where the context ends before.

    Raises:
        UserError: the prompt leaves no room in the context.
    """
    if len(prompt) >= decoder.context_length:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and the model's context {decoder.context_length}; shorten the prompt"
        )
    room = decoder.context_length - len(prompt) + 1  # the last id is that which follows a full context
    return min(room, config.max_new_tokens or room)


class Stepper(Protocol):
    """Gives the logits of the next token, one token after the other, for one text at a time."""

    def begin(self, prompt: Sequence[int], length: int) -> Tensor:
        """[V] behind a prompt of at least one id; valid until the next call. At most `length` positions will be."""

    def step(self, token: int) -> Tensor:
        """[V] behind another token."""


class TorchStepper:
    """See Stepper; on every device.

    Args:
        decoder: in eval mode.
        run: its config.
    """

    def __init__(self, decoder: Decoder, run: RunConfig) -> None:
        self.decoder, self.run = decoder, run
        self._caches: list[KVCache] = []
        self._position = 0

    def begin(self, prompt: Sequence[int], length: int) -> Tensor:
        """Begin a text."""
        weight = self.decoder.embedding.weight
        room = min(length, len(prompt) + _CACHED_AT_FIRST)
        self._caches = make_caches(self.run, 1, room, self.decoder.dtype or weight.dtype, weight.device)
        self._position = 0
        return self._forward(prompt)

    def step(self, token: int) -> Tensor:
        """Go on."""
        return self._forward([token])

    @torch.no_grad()
    def _forward(self, tokens: Sequence[int]) -> Tensor:
        token_BS = torch.tensor([list(tokens)], device=self.decoder.embedding.weight.device)
        logits_BSV, _ = self.decoder(token_BS, self._caches, self._position)
        self._position += len(tokens)
        last_V: Tensor = logits_BSV[0, -1]
        return last_V


def generate_ids(
    decoder: Decoder,
    run: RunConfig,
    prompt: Sequence[int],
    config: SamplingConfig,
    stop_id: int | None,
    agree: Callable[[int], int] = lambda chosen: chosen,
    stepper: Stepper | None = None,
) -> Iterator[int]:
    """Ids that follow the prompt, one by one, until stop_id, max_new_tokens or the end of the context.

    Args:
        decoder: in eval mode.
        run: the decoder's config.
        prompt: at least one id.
        config: sampling.
        stop_id: ends the story and is not yielded; None: never.
        agree: called with each id that was chosen, gives the one to go on with. Where the experts are on several
            ranks, all of them call this with the same arguments, and `agree` gives all of them the same id: in the
            last bit they could disagree, and one would go on while the others stop.
        stepper: computes the decoder's logits; None: torch.

    Raises:
        UserError: the prompt leaves no room in the context.
    """
    most = most_new_ids(decoder, prompt, config)
    stepper = stepper or TorchStepper(decoder, run)
    generator = torch.Generator().manual_seed(config.seed)
    logits_V = stepper.begin(prompt, len(prompt) + most)
    for left in range(most, 0, -1):
        chosen = agree(sample(logits_V, config, generator))
        if chosen == stop_id:
            return
        yield chosen
        if left > 1:
            logits_V = stepper.step(chosen)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt as the beginning of a document."""
    return [tokenizer.end_of_text, *tokenizer.encode(prompt)]


def stream_text(tokenizer: Tokenizer, prompt: str, ids: Iterator[int]) -> Iterator[str]:
    """The continuation as pieces of text, each as soon as it is certain.

    A character may need several tokens; half a character at the very end is never yielded.
    """
    context = prompt_ids(tokenizer, prompt)
    yielded = tokenizer.decode(context)
    for i in ids:
        context.append(i)
        # Half a character decodes to a replacement character; it is yielded with its other half.
        whole = tokenizer.decode(context).rstrip("\ufffd")
        if len(whole) > len(yielded):
            yield whole[len(yielded) :]
            yielded = whole
