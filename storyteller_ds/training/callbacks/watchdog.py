"""Ends a rank that hangs, after printing the stacks of its threads.

When one rank hangs, all do: they wait for it in a collective. Each notices that by itself, prints its stacks, and
exits. A rank that is stopped cannot do so; its supervisor kills it when another rank has exited
(distributed/supervision/).
"""

import faulthandler
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.distributed.heartbeat import progress_made
from storyteller_ds.errors import EXIT_TRAINING_STOPPED
from storyteller_ds.streams import write_unlocked
from storyteller_ds.training.callbacks.callback import Callback

SECONDS_FOR_THE_OTHERS = 5.0
"""Between printing a rank's stacks and its exit: launchers end all ranks once one exits, but all stacks are needed."""
_LOOKS = 20
"""Number of checks within the time limit."""
_LONGEST_PAUSE_S = 10.0


class Watchdog(Callback):
    """Watches this process while it trains; each rank has its own.

    Progress is every collective of World, every step and every validation batch (distributed/heartbeat.py). Saving and
    compiling are not progress: the time limit must be longer than they take.

    Args:
        rank: of this process, for the message.
        minutes: the longest time without progress; 0: no limit.
        progress: counts the progress made so far.
        clock: seconds.
        leave: ends the process with an exit code, without returning; None: only report, once.
        stderr: file descriptor for the stacks.
    """

    def __init__(
        self,
        rank: int,
        minutes: float,
        progress: Callable[[], int] = progress_made,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] | None = os._exit,
        stderr: int = 2,
    ) -> None:
        self._rank, self._limit_s = rank, 60 * minutes
        self._progress, self._clock, self._leave, self._stderr = progress, clock, leave, stderr
        self._pause_s = min(self._limit_s / _LOOKS, _LONGEST_PAUSE_S)
        self._seen = progress()
        self._looked_at = clock()
        self._idle_s = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def on_start(self, state: TrainState) -> None:
        """Start the thread that checks."""
        if self._limit_s:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def on_end(self, exit_code: int) -> None:
        """Stop that thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def is_overdue(self) -> bool:
        """Whether there was no progress for too long; to be called repeatedly.

        Only time in which the process could run counts: a job that was suspended as a whole continues afterwards.
        """
        now, made = self._clock(), self._progress()
        passed = min(max(now - self._looked_at, 0.0), 2 * self._pause_s)
        self._looked_at = now
        self._idle_s = 0.0 if made != self._seen else self._idle_s + passed
        self._seen = made
        return 0 < self._limit_s <= self._idle_s

    def report(self) -> str:
        """A message about this rank, with the stacks of all its threads."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read().decode(errors="replace")
        ends = "" if self._leave is None else " and is ended"
        return (
            f"storyteller: rank {self._rank} on {socket.gethostname()} has made no progress for {self._limit_s / 60:g} "
            f"min (train.hang_timeout_minutes){ends}; its threads:\n{stacks}"
        )

    def _watch(self) -> None:
        while not self._ended.wait(self._pause_s):
            if self.is_overdue():
                # In one write, since all ranks write at this moment.
                write_unlocked(self._stderr, self.report())
                self._ended.wait(SECONDS_FOR_THE_OTHERS)
                if self._leave is not None and not self._ended.is_set():
                    self._leave(EXIT_TRAINING_STOPPED)
                return
