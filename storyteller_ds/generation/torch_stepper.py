"""The decoder in torch, on every device."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.kv_cache import KVCache, make_caches
from storyteller_ds.generation.stepper import CACHED_AT_FIRST
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.moe.balance import RouterStats

_PADDING = 0
"""Any id; no text attends to it."""


class TorchStepper:
    """See Stepper.

    Args:
        decoder: in eval mode.
        run: its config.

    Attributes:
        logits_V: logits of the last call.
    """

    logits_V: Tensor

    def __init__(self, decoder: Decoder, run: RunConfig) -> None:
        self.decoder, self.run = decoder, run
        self._caches: list[KVCache] = []
        self._position = 0
        self._stats: list[RouterStats] = []

    @property
    def experts(self) -> list[list[int]]:
        """For each MoE layer, the experts that the last token went to, in the router's order."""
        return [stats.expert_TK[-1].tolist() for stats in self._stats]

    def begin(self, prompt: Sequence[int], length: int) -> Tensor:
        """Begin a text."""
        self._caches = _caches(self.decoder, self.run, 1, len(prompt), length)
        self._position = 0
        return self._forward(prompt)

    def step(self, token: int) -> Tensor:
        """Continue with a token."""
        return self._forward([token])

    def another(self) -> Self:
        """Another stepper with its own caches."""
        return type(self)(self.decoder, self.run)

    def texts(self) -> "TorchTexts":
        """See TorchTexts."""
        return TorchTexts(self.decoder, self.run)

    @torch.no_grad()
    def _forward(self, tokens: Sequence[int]) -> Tensor:
        token_BS = torch.tensor([list(tokens)], device=self.decoder.embedding.weight.device)
        logits_BSV, self._stats = self.decoder(token_BS, self._caches, self._position)
        self._position += len(tokens)
        self.logits_V = logits_BSV[0, -1]
        return self.logits_V


class TorchTexts:
    """See Texts. Texts are padded on the left, so that all get their next id in the same place.

    Args:
        decoder: in eval mode.
        run: its config.
    """

    def __init__(self, decoder: Decoder, run: RunConfig) -> None:
        self.decoder, self.run = decoder, run
        self._caches: list[KVCache] = []
        self._length = 0

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """See Texts."""
        self._length, device = max(map(len, prompts)), self.decoder.embedding.weight.device
        self._padding_B = torch.tensor([self._length - len(prompt) for prompt in prompts], device=device)
        self._caches = _caches(self.decoder, self.run, len(prompts), self._length, room)
        return self._forward([[_PADDING] * (self._length - len(prompt)) + [*prompt] for prompt in prompts], 0)

    def step(self, ids: Sequence[int]) -> Tensor:
        """See Texts."""
        self._length += 1
        return self._forward([[i] for i in ids], self._length - 1)

    def keep(self, texts: Sequence[int]) -> None:
        """See Texts."""
        row_B = torch.tensor(texts, device=self._padding_B.device)
        self._padding_B = self._padding_B[row_B]
        for cache in self._caches:
            cache.keep(row_B)

    @torch.no_grad()
    def _forward(self, ids: list[list[int]], start: int) -> Tensor:
        """[B, V]"""
        token_BS = torch.tensor(ids, device=self._padding_B.device)
        place_S = torch.arange(start, start + token_BS.shape[1], device=token_BS.device)
        # Finished texts continue at the last position until the batch is made smaller.
        position_BS = (place_S - self._padding_B[:, None]).clamp(max=self.decoder.context_length - 1)
        logits_BSV, _ = self.decoder(token_BS, self._caches, start, position_BS=position_BS)
        logits_BV: Tensor = logits_BSV[:, -1]
        return logits_BV


def _caches(decoder: Decoder, run: RunConfig, texts: int, length: int, room: int) -> list[KVCache]:
    """Caches for texts that are `length` long now and will be at most `room` (positions)."""
    weight = decoder.embedding.weight
    room = min(room, length + CACHED_AT_FIRST)
    return make_caches(run, texts, room, decoder.dtype or weight.dtype, weight.device)
