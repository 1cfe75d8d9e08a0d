"""Several texts continued together, with one pass of the decoder for the logits of all."""

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from storyteller_ds.generation.decode import Continuation, choose_each
from storyteller_ds.generation.stepper import Texts


class Batch:
    """Texts of any lengths that get their next ids at the same time.

    Args:
        texts: at least one, none of them started; past_context=stop.
        computed: computes their logits.
    """

    def __init__(self, texts: Sequence[Continuation], computed: Texts) -> None:
        self.texts, self._computed = texts, computed
        self._queues: list[deque[int]] = [deque() for _ in texts]
        self._rows = list(range(len(texts)))
        """Row of the current batch -> text."""
        self._left: set[int] = set()
        """Texts that are no longer read."""
        self._has_begun = False

    def ids(self, text: int) -> Iterator[int]:
        """The ids of a text; those of the other texts are computed along with them, and queued until requested."""
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
        """Give every unfinished text its next id."""
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
        if 2 * len(going) <= len(self._rows):  # half of the batch would be computed for nothing
            self._rows = [self._rows[row] for row in going]
            self._computed.keep(going)
        return self._computed.step([self.texts[text].window[-1] for text in self._rows])
