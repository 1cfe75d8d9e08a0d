"""Batches that a thread reads before they are asked for."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from storyteller_ds.data.batching.batches import TrainBatches
from storyteller_ds.data.batching.micro_batch import MicroBatch

STEPS_AHEAD = 2
"""Optimizer steps that are read before they are asked for."""


class PrefetchedBatches:
    """The given batches, read ahead of time, in pinned memory if a GPU is to copy them.

    Args:
        batches: the batches to read.
        ahead: optimizer steps that are read before they are asked for.
        pinned: whether they are put into pinned memory.
    """

    def __init__(self, batches: TrainBatches, ahead: int, pinned: bool) -> None:
        self._batches, self._ahead, self._pinned = batches, ahead, pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ready: deque[tuple[int, Future[list[MicroBatch]]]] = deque()

    def step(self, samples_seen: int) -> list[MicroBatch]:
        """See Batches; what was read ahead for another position is dropped."""
        if not self._ready or self._ready[0][0] != samples_seen:
            self._ready.clear()
        while len(self._ready) <= self._ahead:
            samples = samples_seen + len(self._ready) * self._batches.samples_of_a_step
            self._ready.append((samples, self._thread.submit(self._read, samples)))
        return self._ready.popleft()[1].result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, samples_seen: int) -> list[MicroBatch]:
        batches = self._batches.step(samples_seen)
        return [batch.pinned() for batch in batches] if self._pinned else batches
