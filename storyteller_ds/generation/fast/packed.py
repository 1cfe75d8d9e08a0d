"""Texts that are continued by step.decode."""

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.fast import step
from storyteller_ds.generation.fast.step import Layers
from storyteller_ds.generation.fast.team import threads
from storyteller_ds.generation.fast.weights import PackedWeights
from storyteller_ds.generation.stepper import CACHED_AT_FIRST
from storyteller_ds.model.decoder import Decoder

_TOGETHER = 128
"""Prompt tokens that are computed in one step: what they need stays in the caches of a core."""
_WORTH_A_THREAD = 4_000_000
"""Multiplications in a step, over all its tokens, that take as long as waking a thread."""


class PackedTexts:
    """Any number of texts, each of any length, that get their next ids together; see Texts in stepper.py.

    Args:
        weights: weights of the decoder.
        run: its config.
    """

    def __init__(self, weights: PackedWeights, run: RunConfig) -> None:
        self._weights, self._run = weights, run
        self._packed: Layers | None = None
        self._values = np.empty((0, 0, 0, 0, 0), np.float32)
        self._worked = (0, 0, 0)

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """[B, V], the logits after each prompt of at least one id; valid until the next call.

        Args:
            prompts: ids.
            room: maximum number of positions of a text.
        """
        self._slot = np.arange(len(prompts))
        self._length = np.array([len(prompt) for prompt in prompts])
        self._make_room(len(prompts), min(room, int(self._length.max()) + CACHED_AT_FIRST))
        self._follow(self._weights.current())
        self._logits = np.empty((len(prompts), self._run.tokenizer.vocab_size), np.float32)
        token = np.concatenate([np.array(prompt, np.int64) for prompt in prompts])
        slot = np.repeat(self._slot, self._length)
        position = np.concatenate([np.arange(length) for length in self._length])
        end = np.cumsum(self._length) - 1
        for start in range(0, len(token), _TOGETHER):
            these = slice(start, start + _TOGETHER)
            first, last = np.searchsorted(end, (start, start + _TOGETHER))
            self._decode(token[these], slot[these], position[these], end[first:last] - start, self._logits[first:last])
        return torch.from_numpy(self._logits)

    def step(self, ids: Sequence[int]) -> Tensor:
        """[B, V], the logits after another id of each text."""
        if self._length.max() == self._values.shape[-1]:  # compiled code would write beyond the end
            self._grow()
        self._follow(self._weights.where_they_are())
        # A finished text may continue along with the others, at the last position.
        position = np.minimum(self._length, self._run.context_length - 1)
        self._decode(np.array(ids, np.int64), self._slot, position, np.arange(len(ids)), self._logits)
        self._length = position + 1
        return torch.from_numpy(self._logits)

    def keep(self, texts: Sequence[int]) -> None:
        """Forget all texts except these, by their indices in the batch."""
        self._slot, self._length = self._slot[texts], self._length[texts]
        self._logits = self._logits[: len(texts)]

    def _decode(
        self,
        token: NDArray[np.int64],
        slot: NDArray[np.int64],
        position: NDArray[np.int64],
        wanted: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> None:
        x = self._weights.embedded(token)
        team = min(threads().number, max(1, self._weights.multiplied * len(token) // _WORTH_A_THREAD))
        positions = self._values.shape[-1]
        if (len(token), team, positions) != self._worked:
            self._worked = len(token), team, positions
            self._work = self._weights.work(*self._worked)
        model, memory = (self._weights.sizes, self._layers), (self._keys, self._values, self._work)
        threads().run(
            lambda member: step.decode(token, slot, position, wanted, x, *model, *memory, logits, member), team
        )

    def _make_room(self, texts: int, positions: int) -> None:
        """Allocate keys and values, reusing the memory of earlier texts: new memory takes time."""
        model = self._run.model
        positions = -(-positions // step.VECTOR) * step.VECTOR
        if self._values.shape[1] == texts and self._values.shape[-1] >= positions:
            return
        shape = (model.num_layers, texts, model.kv_heads, model.head_dim, positions)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._packed = None  # its rotary angles are for another number of positions

    def _follow(self, packed: Layers) -> None:
        """Switch to these weights: the memory of the previous ones may no longer exist."""
        if packed is not self._packed:
            self._packed, self._layers = packed, self._weights.layers(self._values.shape[-1])

    def _grow(self) -> None:
        """Double the room."""
        keys, values, kept = self._keys, self._values, self._values.shape[-1]
        self._make_room(values.shape[1], 2 * kept)
        self._keys[..., :kept], self._values[..., :kept] = keys, values


class PackedDecoder:
    """One text at a time; see Stepper.

    Args:
        decoder: see PackedWeights.
        run: its config.
    """

    def __init__(self, decoder: Decoder, run: RunConfig) -> None:
        self.weights, self._run = PackedWeights(decoder, run), run
        self._text = self.texts()

    def texts(self) -> PackedTexts:
        """A PackedTexts for several texts that are continued together."""
        return PackedTexts(self.weights, self._run)

    def another(self) -> Self:
        """A decoder with the same weights for another text at the same time."""
        other = copy.copy(self)
        other._text = self.texts()
        return other

    def begin(self, prompt: Sequence[int], length: int) -> Tensor:
        """See Stepper."""
        return self._text.begin([prompt], length)[0]

    def step(self, token: int) -> Tensor:
        """See Stepper."""
        return self._text.step([token])[0]
