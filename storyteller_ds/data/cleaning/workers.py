"""Cleaning on all cores: results come in the order of the stories, whatever the number of processes."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from storyteller_ds.data.cleaning.clean import Cleaned, clean
from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.errors import OutOfMemory

BATCH_CHARACTERS = 1 << 19
"""Characters of the stories that a process gets at once."""
_AHEAD = 2
"""Batches that wait, per process; bounds the memory."""
_FEW_BATCHES = 4
"""Fewer batches than this are cleaned before processes could start."""


def cleaned(stories: Iterable[tuple[str, int]], policy: Policy, processes: int) -> Iterator[tuple[Cleaned, int]]:
    """Clean stories, batch by batch; each batch is of one split.

    Args:
        stories: stories with the split that their file is named for; read as they are needed.
        policy: see clean.
        processes: number of processes; 1: clean in this one.

    Raises:
        OutOfMemory: a process was killed.
    """
    batches = _batches(stories)
    first = list(itertools.islice(batches, _FEW_BATCHES))
    if processes == 1 or len(first) < _FEW_BATCHES:
        yield from ((clean(batch, policy), split) for batch, split in itertools.chain(first, batches))
        return
    # Not forked: this process may have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare)
    try:
        waiting: deque[tuple[Future[Cleaned], int]] = deque()
        for batch, split in itertools.chain(first, batches):
            waiting.append((pool.submit(clean, batch, policy), split))
            if len(waiting) > _AHEAD * processes:
                yield _result(waiting)
        while waiting:
            yield _result(waiting)
    except BrokenProcessPool:
        raise OutOfMemory(
            "a process that cleans stories was killed, for want of memory perhaps; close other programs"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(waiting: deque[tuple[Future[Cleaned], int]]) -> tuple[Cleaned, int]:
    future, split = waiting.popleft()
    return future.result(), split


def _batches(stories: Iterable[tuple[str, int]]) -> Iterator[tuple[list[str], int]]:
    for split, group in itertools.groupby(stories, key=lambda each: each[1]):
        batch: list[str] = []
        characters = 0
        for story, _ in group:
            batch.append(story)
            characters += len(story)
            if characters >= BATCH_CHARACTERS:
                yield batch, split
                batch, characters = [], 0
        if batch:
            yield batch, split


def _prepare() -> None:
    """Make a new process ignore Ctrl-C, which is for its parent, and end when its parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
