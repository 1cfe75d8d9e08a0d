"""Several texts continued together, whose logits come from one pass of the decoder."""

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from storyteller_ds.generation.decode import Continuation, choose_each
from storyteller_ds.generation.stepper import Texts


class Batch:
    """Texts of any lengths that get their next ids at the same time.

    Args:
        texts: at least one, none of them begun; past_context=stop.
        computed: gives their logits.
    """

    def __init__(self, texts: Sequence[Continuation], computed: Texts) -> None:
        self.texts, self._computed = texts, computed
        self._queues: list[deque[int]] = [deque() for _ in texts]
        self._rows = list(range(len(texts)))
        """Of the batch as it is now: which text each is."""
        self._left: set[int] = set()
        """Texts that nobody reads any more."""
        self._has_begun = False

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
        logits_BV = self._step() if self._has_begun else self._begin()
        going = [row for row, text in enumerate(self._rows) if not self._ended(text)]
        texts = [self._rows[row] for row in going]
        logits_GV = logits_BV.float().cpu().numpy()[going]
        for text, chosen in zip(texts, choose_each([self.texts[i] for i in texts], logits_GV), strict=True):
            if chosen is not None:
                self._queues[text].append(chosen)

    def _ended(self, text: int) -> bool:
        return self.texts[text].is_over or text in self._left

    def _begin(self) -> Tensor:
        self._has_begun = True
        return self._computed.begin([text.window for text in self.texts], max(text.longest for text in self.texts))

    def _step(self) -> Tensor:
        going = [row for row, text in enumerate(self._rows) if not self._ended(text)]
        if 2 * len(going) <= len(self._rows):  # half of the batch would be computed for nobody
            self._rows = [self._rows[row] for row in going]
            self._computed.keep(going)
        return self._computed.step([self.texts[text].window[-1] for text in self._rows])
