"""Threads that compute one step of the decoder together."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Lock

import numpy as np
import torch

from storyteller_ds.generation.fast.step import Team


class Threads:
    """Threads that wait for each other many times in a step, so that all of them have to be running.

    If several threads of the program read texts, their steps run one after the other.

    Args:
        number: number of threads, including the caller's.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool = ThreadPoolExecutor(max(1, number - 1), "decoder")
        self._lock = Lock()

    def run(self, part: Callable[[Team], None], threads: int) -> None:
        """Let this many threads, including this one, do their parts.

        Args:
            part: does the part of one member of a team; must not raise.
            threads: at most `number`.
        """
        meetings = np.zeros(2, np.int64)
        if threads == 1:
            part(Team(meetings, 0, 1))
            return
        with self._lock:
            others: list[Future[None]] = []
            try:
                others += (self._pool.submit(part, Team(meetings, i, threads)) for i in range(1, threads))
                part(Team(meetings, 0, threads))
                for other in others:
                    other.result()
            except BaseException:  # Ctrl-C
                meetings[1] = 1  # releases the threads that wait for this one; their results are useless
                for other in others:
                    if not other.cancel():
                        other.exception()
                raise


@cache
def threads() -> Threads:
    """The threads of this process, as many as torch has."""
    return Threads(torch.get_num_threads())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=threads.cache_clear)  # threads do not survive a fork
