"""Continuing a text, token by token."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.generation.sampling import SamplingConfig, sample, sample_plain
from storyteller_ds.generation.stepper import Stepper
from storyteller_ds.generation.torch_stepper import TorchStepper
from storyteller_ds.model.decoder import Decoder


def check_sampling(decoder: Decoder, config: SamplingConfig, prefix: str = "") -> None:
    """Check that a model can do what the config says.

    Raises:
        UserError: it cannot; `prefix` is put before the setting's name.
    """
    if config.past_context == "slide" and decoder.position_embedding is not None:
        raise UserError(
            f"{prefix}past_context=slide gives tokens new positions, and this model has learned its positions "
            f"one by one; use {prefix}past_context=stop, or a model with model.position=rope"
        )
    if unknown := [i for i in config.logit_bias if i >= decoder.vocab_size]:
        raise UserError(
            f"{prefix}logit_bias has the id {unknown[0]}; those of this model end at {decoder.vocab_size - 1}"
        )


def most_new_ids(decoder: Decoder, prompt: Sequence[int], config: SamplingConfig) -> int:
    """Maximum number of ids that can follow the prompt: max_new_tokens, or fewer if the context ends first.

    Raises:
        UserError: the prompt leaves no room in the context, or check_sampling does.
    """
    check_sampling(decoder, config)
    if len(prompt) >= decoder.context_length:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and the model's context {decoder.context_length}; shorten the prompt"
        )
    room = decoder.context_length - len(prompt) + 1  # the last id is the one that follows a full context
    if config.max_new_tokens is None:
        return room
    return config.max_new_tokens if config.past_context == "slide" else min(room, config.max_new_tokens)


class Continuation:
    """A text that is being continued: chooses ids from logits, and tells which ids the next logits are needed for.

    With past_context=slide, an id that does not fit into the context starts a new one: the last ids up to this one,
    half a context of them, get the positions from 0. All of them are computed again, since their keys and values depend
    on the ids that are forgotten; so the logits are those of the window alone.

    Args:
        decoder: the decoder that computes the logits.
        prompt: at least one id.
        config: sampling.
        stop_id: ends the story and is not part of it; None: never.
        agree: see generate_ids.

    Attributes:
        window: ids whose successor is wanted, at most a full context.
        most: longest continuation (tokens).
        begins_anew: whether all of `window` must be computed, and not just its last id.
        is_over: whether the text is complete.

    Raises:
        UserError: see most_new_ids.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt: Sequence[int],
        config: SamplingConfig,
        stop_id: int | None,
        agree: Callable[[int], int] = lambda chosen: chosen,
    ) -> None:
        self.most = most_new_ids(decoder, prompt, config)
        self.config, self.window = config, list(prompt)
        self.begins_anew, self.is_over = True, False
        self._stop_id, self._agree, self._context = stop_id, agree, decoder.context_length
        self._generator = torch.Generator().manual_seed(config.seed)
        # The end-of-story id also stands before the prompt, where it does not count as said.
        self._said_before = [i for i in prompt if i != stop_id]
        self._generated: list[int] = []

    @property
    def longest(self) -> int:
        """Maximum number of positions that the window can have without starting a new context."""
        return min(self._context, len(self.window) + self.most - len(self._generated))

    def choose(self, logits_V: Tensor) -> int | None:
        """The id that follows the window, chosen from its logits; None: the story has ended."""
        return self._take(sample(logits_V, self.config, self._generator, self._said_before, self._generated))

    def _take(self, sampled: int) -> int | None:
        chosen = self._agree(sampled)
        if chosen == self._stop_id:
            self.is_over = True
            return None
        self._generated.append(chosen)
        self.is_over = len(self._generated) == self.most
        self.window.append(chosen)
        self.begins_anew = len(self.window) > self._context
        if self.begins_anew:
            self.window = self.window[-(self._context // 2) :]
        return chosen


def choose_each(texts: Sequence[Continuation], logits_BV: NDArray[np.float32]) -> list[int | None]:
    """Continuation.choose for several texts, by their logits [B, V]; a batch takes less time per text."""
    plain = [row for row, text in enumerate(texts) if text.config.is_plain]
    configs, generators = [texts[row].config for row in plain], [texts[row]._generator for row in plain]
    sampled = dict(zip(plain, sample_plain(logits_BV[plain], configs, generators), strict=True))
    return [
        text._take(sampled[row]) if row in sampled else text.choose(torch.from_numpy(logits_BV[row]))
        for row, text in enumerate(texts)
    ]


def continued(text: Continuation, stepper: Stepper) -> Iterator[int]:
    """The ids of a continuation, one by one."""
    while not text.is_over:
        logits_V = stepper.begin(text.window, text.longest) if text.begins_anew else stepper.step(text.window[-1])
        if (chosen := text.choose(logits_V)) is not None:
            yield chosen


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
        agree: called with each id that was chosen, returns the one to continue with. If the experts are on several
            ranks, all ranks call this with the same arguments, and `agree` returns the same id on all of them: their
            logits could differ in the last bit, and one rank would continue while the others stop.
        stepper: computes the decoder's logits; None: torch.

    Raises:
        UserError: see most_new_ids.
    """
    return continued(Continuation(decoder, prompt, config, stop_id, agree), stepper or TorchStepper(decoder, run))


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt at the beginning of a document."""
    return [tokenizer.end_of_text, *tokenizer.encode(prompt)]


def text_of_each(tokenizer: Tokenizer, prompt: str, ids: Iterator[int]) -> Iterator[str]:
    """For each id, the text that becomes certain with it, possibly empty; joined, the continuation.

    A character may need several tokens; an incomplete character at the very end is never yielded.
    """
    window = prompt_ids(tokenizer, prompt)
    said = len(tokenizer.decode(window))
    for i in ids:
        window.append(i)
        text = tokenizer.decode(window)
        # An incomplete character decodes to a replacement character; it is yielded when it is complete.
        whole = text.rstrip("\ufffd")
        yield whole[said:]
        if len(whole) > said:
            said = len(whole)
            if whole == text and tokenizer.text_is_certain_after(i):
                # Nothing before this id needs to be decoded again.
                window = [i]
                said = len(tokenizer.decode(window))
