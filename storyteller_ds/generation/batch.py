"""Several texts continued together, whose logits come from one pass of the decoder."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.decode import CACHED_AT_FIRST, Continuation
from storyteller_ds.generation.kv_cache import make_caches
from storyteller_ds.model.decoder import Decoder

_PADDING = 0
"""An id; no text attends to it."""


class Batch:
    """Texts of any lengths, padded on the left, so that all get their next id in the same place.

    Args:
        decoder: in eval mode.
        run: its config.
        texts: at least one, none of them begun; past_context=stop.
    """

    def __init__(self, decoder: Decoder, run: RunConfig, texts: Sequence[Continuation]) -> None:
        self.decoder, self.run, self.texts = decoder, run, texts
        self._queues: list[deque[int]] = [deque() for _ in texts]
        self._rows = list(range(len(texts)))
        """Of the batch as it is now: which text each is."""
        self._left: set[int] = set()
        """Texts that nobody reads any more."""
        self._length = max(len(text.window) for text in texts)
        self._logits_BV: Tensor | None = None

    def ids(self, text: int) -> Iterator[int]:
        """The ids of a text; those of the others are computed with them, and kept until they are asked for."""
        queue = self._queues[text]
        try:
            while queue or not self.texts[text].is_over:
                if not queue:
                    self._advance()
                while queue:
                    yield queue.popleft()
        finally:
            self._left.add(text)

    def _advance(self) -> None:
        """Give every text that goes on its next id."""
        logits_BV = self._begin() if self._logits_BV is None else self._step()
        # In one transfer: ids are chosen on the CPU.
        for row_V, text in zip(logits_BV.float().cpu(), self._rows, strict=True):
            if not self._ended(text) and (chosen := self.texts[text].choose(row_V)) is not None:
                self._queues[text].append(chosen)

    def _ended(self, text: int) -> bool:
        return self.texts[text].is_over or text in self._left

    def _begin(self) -> Tensor:
        windows, weight = [text.window for text in self.texts], self.decoder.embedding.weight
        padded = [[_PADDING] * (self._length - len(window)) + window for window in windows]
        self._padding_B = torch.tensor([self._length - len(window) for window in windows], device=weight.device)
        room = self._length + min(max(text.most for text in self.texts), CACHED_AT_FIRST)
        self._caches = make_caches(self.run, len(padded), room, self.decoder.dtype or weight.dtype, weight.device)
        return self._forward(torch.tensor(padded, device=weight.device), 0)

    def _step(self) -> Tensor:
        going = [row for row, text in enumerate(self._rows) if not self._ended(text)]
        if 2 * len(going) <= len(self._rows):  # half of the batch would be computed for nobody
            row_B = torch.tensor(going, device=self._padding_B.device)
            self._rows, self._padding_B = [self._rows[row] for row in going], self._padding_B[row_B]
            for cache in self._caches:
                cache.keep(row_B)
        last = [[self.texts[text].window[-1]] for text in self._rows]
        self._length += 1
        return self._forward(torch.tensor(last, device=self._padding_B.device), self._length - 1)

    @torch.no_grad()
    def _forward(self, token_BS: Tensor, start: int) -> Tensor:
        """[B, V]"""
        place_S = torch.arange(start, start + token_BS.shape[1], device=token_BS.device)
        # Texts that are over go on at the last position until the batch is made smaller.
        position_BS = (place_S - self._padding_B[:, None]).clamp(max=self.decoder.context_length - 1)
        logits_BSV, _ = self.decoder(token_BS, self._caches, start, position_BS=position_BS)
        self._logits_BV = logits_BSV[:, -1]
        return self._logits_BV
