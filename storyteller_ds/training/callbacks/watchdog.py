"""Ends a rank that does not get on, with the stacks of its threads.

A rank that waits for another one in a collective is stuck in C++ and answers nobody, and neither does the one that is
stopped or spins. Of a run whose ranks go step by step together, all stand still as soon as one does: each finds that
out by itself, says where it stands, and leaves. Ranks that cannot even do that are killed by their supervisors, which
the others' exit tells (distributed/supervision/).
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
"""Between a rank's stacks and its exit: launchers end all ranks when one has left, and the others' stacks count too."""
_LOOKS = 20
"""How often it looks, in the time that it allows."""
_LONGEST_PAUSE_S = 10.0


class Watchdog(Callback):
    """Watches this process while it trains; each rank has its own.

    Progress is every collective of World, every step and every validation batch (distributed/heartbeat.py). Saving and
    compiling count as standing still: the time allowed must cover the longest of them.

    Args:
        rank: of this process, to be named.
        minutes: how long nothing may happen; 0: for ever.
        progress: how often the process has got on so far.
        clock: seconds.
        leave: ends the process with an exit code, without returning.
        stderr: file descriptor for the stacks.
    """

    def __init__(
        self,
        rank: int,
        minutes: float,
        progress: Callable[[], int] = progress_made,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
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
        """Begin to watch."""
        if self._limit_s:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def on_end(self, exit_code: int) -> None:
        """Leave the process alone."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def is_overdue(self) -> bool:
        """Look; to be called every so often. Whether the process has stood still for too long.

        Only time in which it could have run counts: a job that was suspended as a whole goes on afterwards.
        """
        now, made = self._clock(), self._progress()
        passed = min(max(now - self._looked_at, 0.0), 2 * self._pause_s)
        self._looked_at = now
        self._idle_s = 0.0 if made != self._seen else self._idle_s + passed
        self._seen = made
        return 0 < self._limit_s <= self._idle_s

    def report(self) -> str:
        """What is said of this rank, and the stacks of all its threads."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read().decode(errors="replace")
        return (
            f"storyteller: rank {self._rank} on {socket.gethostname()} has not got on for {self._limit_s / 60:g} min "
            f"(train.hang_timeout_minutes) and is ended; its threads:\n{stacks}"
        )

    def _watch(self) -> None:
        while not self._ended.wait(self._pause_s):
            if self.is_overdue():
                # In one piece, since all ranks write at this moment.
                write_unlocked(self._stderr, self.report())
                self._ended.wait(SECONDS_FOR_THE_OTHERS)
                if not self._ended.is_set():
                    self._leave(EXIT_TRAINING_STOPPED)
                return
