"""Decoder steps on a GPU by replaying a CUDA graph.

A step of one token is recorded once and replayed: launching a hundred small operators takes the host longer than they
take the GPU. No shape, address or branch in it depends on the text, and the host reads nothing.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.stepper import CACHED_AT_FIRST
from storyteller_ds.generation.torch_stepper import TorchTexts
from storyteller_ds.model.decoder import Decoder


class GraphStepper:
    """See Stepper. On CUDA a step is a CUDA graph; elsewhere the same operators run one by one.

    Args:
        decoder: in eval mode.
        run: its config.
    """

    def __init__(self, decoder: Decoder, run: RunConfig) -> None:
        self.decoder, self.run = decoder, run
        self._device = decoder.embedding.weight.device
        self._token_11 = torch.zeros(1, 1, dtype=torch.int64, device=self._device)
        self._position_1 = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._caches: list[FixedCache] = []
        self._length = 0
        self._graph: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
        """The graph and the logits that it writes."""

    def begin(self, prompt: Sequence[int], length: int) -> Tensor:
        """Begin a text."""
        self._length = len(prompt)
        self._have_room(min(length, self._length + CACHED_AT_FIRST))
        token_1S = torch.tensor([list(prompt)], device=self._device)
        return self._forward(token_1S, torch.arange(self._length, device=self._device))

    def step(self, token: int) -> Tensor:
        """Continue with a token."""
        self._length += 1
        self._have_room(self._length)
        self._token_11.fill_(token)
        self._position_1.fill_(self._length - 1)
        if self._device.type != "cuda":
            return self._forward(self._token_11, self._position_1)
        if self._graph is None:
            self._graph = self._recorded()
        graph, logits_V = self._graph
        graph.replay()
        return logits_V

    def another(self) -> Self:
        """Another stepper with its own caches and graph."""
        return type(self)(self.decoder, self.run)

    def texts(self) -> TorchTexts:
        """See TorchTexts."""
        return TorchTexts(self.decoder, self.run)

    @torch.no_grad()
    def _forward(self, token_1S: Tensor, position_S: Tensor) -> Tensor:
        """Logits [V] after tokens at positions."""
        for cache in self._caches:
            cache.position_S = position_S
        seen_11ST = (torch.arange(self._room, device=self._device) <= position_S[:, None])[None, None]
        logits_1SV, _ = self.decoder(token_1S, self._caches, position_BS=position_S[None], mask_BHSS=seen_11ST)
        logits_V: Tensor = logits_1SV[0, -1]
        return logits_V

    def _recorded(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record the graph of a step, which writes the same keys and values however often it runs."""
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # before that, kernels are compiled and libraries get their memory
                self._forward(self._token_11, self._position_1)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Another thread may be generating at the same time; its allocations do not concern this graph.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits_V = self._forward(self._token_11, self._position_1)
        return graph, logits_V

    @property
    def _room(self) -> int:
        return self._caches[0].room

    def _have_room(self, positions: int) -> None:
        """Make room in the caches for this many positions, keeping their contents; drop a graph of smaller ones."""
        if self._caches and positions <= self._room:
            return
        model, weight = self.run.model, self.decoder.embedding.weight
        room = CACHED_AT_FIRST
        while room < positions:
            room *= 2
        old, self._graph = self._caches, None
        self._caches = [FixedCache(model.kv_heads, room, model.head_dim, weight) for _ in range(model.num_layers)]
        for cache, before in zip(self._caches, old, strict=False):
            cache.take(before)


class FixedCache:
    """Keys and values of one layer and one text, at a fixed address; see attention.LayerCache.

    Args:
        heads: number of key and value heads.
        room: positions.
        head_dim: features.
        like: tensor whose dtype and device they have.

    Attributes:
        position_S: [S] int64, positions of the next keys and values.
        room: positions.
    """

    position_S: Tensor

    def __init__(self, heads: int, room: int, head_dim: int, like: Tensor) -> None:
        self.room = room
        # Zeros: entries that no position attends to are multiplied by 0, and must be finite.
        self._k, self._v = (like.new_zeros(1, heads, room, head_dim, requires_grad=False) for _ in range(2))

    def extend(self, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values; return the whole cache, [1, H, T, D]."""
        self._k.index_copy_(2, self.position_S, k_BHSD)
        self._v.index_copy_(2, self.position_S, v_BHSD)
        return self._k, self._v

    def take(self, before: "FixedCache") -> None:
        """Copy the contents of a smaller cache."""
        self._k[:, :, : before.room] = before._k
        self._v[:, :, : before.room] = before._v
