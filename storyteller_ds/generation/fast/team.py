"""Threads that do one step of the decoder together."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Lock

import numpy as np
import torch

from storyteller_ds.generation.fast.step import Team


class Threads:
    """Threads that wait for each other many times in a step, so that all of them have to run.

    Steps of texts that several threads of the program read come one after the other.

    Args:
        number: of threads, that of the caller among them.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool = ThreadPoolExecutor(max(1, number - 1), "decoder")
        self._lock = Lock()

    def run(self, part: Callable[[Team], None], threads: int) -> None:
        """Let so many threads, of which this is one, do their parts.

        Args:
            part: of a member of a team; does not raise.
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
                meetings[1] = 1  # those that wait for this one go on, to no use
                for other in others:
                    if not other.cancel():
                        other.exception()
                raise


@cache
def threads() -> Threads:
    """Those of this process, as many as torch has."""
    return Threads(torch.get_num_threads())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=threads.cache_clear)  # threads do not come along
