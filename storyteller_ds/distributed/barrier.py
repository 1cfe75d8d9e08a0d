"""A barrier without a time limit, for ranks that wait for work of unknown length.

A collective has a timeout: the first rank to enter it gives up even if the others are only busy with a corpus of
several gigabytes, a download or a compiler. So the ranks first wait here, through the key-value store of the process
group. A working rank sends signs of life, and the others wait as long as these arrive. A rank that is killed ends the
run through the lifeline (distributed/supervision/).

The store belongs to rank 0 and does not answer while rank 0 is stopped, so only separate threads query it. Under
torchrun it belongs to the launcher. If the launcher was killed, the ranks still have to save: they leave the barrier
and wait in the collective that follows, with its timeout.
"""

import contextlib
import threading
import time
from collections.abc import Callable

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from storyteller_ds.errors import TrainingStopped
from storyteller_ds.meanwhile import meanwhile

SIGN_OF_LIFE_S = 10.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.25
_PAUSE = 0.1
"""Time between two requests to the store, as a fraction of the time waited so far: at most a tenth late."""
_TICK_S = 0.25
"""Time between two checks of the clock."""
_MOST_PER_TICK_S = 1.0
"""The most silence that one tick counts, so that a job that was suspended as a whole continues afterwards."""
_ANSWER_S = 2.0
"""How long to wait for the store to name the missing ranks."""


class Barrier:
    """One rank's side of the barrier; all ranks use it equally often, in the same order.

    Args:
        store: shared by all ranks, and used for nothing else.
        rank: rank of this process.
        size: number of ranks.
        silence_s: how long the missing ranks may go without a sign of life (seconds).
        clock: returns seconds.
    """

    def __init__(
        self, store: Store, rank: int, size: int, silence_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._silence_s, self._clock = silence_s, clock
        self._passed = 0
        self._arrival: _Arrival | None = None

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        """Send signs of life until the block ends."""
        return meanwhile(self._give_sign, min(SIGN_OF_LIFE_S, self._silence_s / 5))

    def wait(self) -> None:
        """Wait until every rank has arrived, or the store is gone.

        May be called again if a signal handler has raised an exception.

        Raises:
            TrainingStopped: the missing ranks have sent no sign of life for too long.
        """
        if self._arrival is None:
            self._arrival = _Arrival(self._store, self._rank, self._size, self._passed)
        arrival, silent_s, signs, looked = self._arrival, 0.0, 0, self._clock()
        while not arrival.over.wait(_TICK_S):
            now, received = self._clock(), arrival.signs
            silent_s = 0.0 if received != signs else silent_s + min(now - looked, _MOST_PER_TICK_S)
            looked, signs = now, received
            if silent_s >= self._silence_s:
                raise TrainingStopped(
                    f"rank {arrival.who_is_missing()} gave no sign of life for {self._silence_s / 60:g} min "
                    "(parallel.timeout_minutes) while the others waited; is it stopped, or does its machine hang? "
                    "run again to continue"
                )
        self._arrival = None
        self._passed += 1

    def _give_sign(self) -> None:
        with contextlib.suppress(DistError):  # the store is gone, which the waiting ranks notice
            self._store.add("signs", 1)


class _Arrival:
    """The arrival of this rank at the barrier; a thread asks the store about the others.

    Args:
        store: as for Barrier.
        rank: rank of this process.
        size: number of ranks.
        turn: number of barriers passed before.
    """

    def __init__(self, store: Store, rank: int, size: int, turn: int) -> None:
        self._store, self._rank, self._size, self._turn = store, rank, size, turn
        self.over = threading.Event()
        """Set when all have arrived, or the store is gone."""
        self.signs = 0
        """Signs of life received from any rank so far."""
        self._asked, self._answered, self._missing = threading.Event(), threading.Event(), [0]
        threading.Thread(target=self._look, name="barrier", daemon=True).start()

    def who_is_missing(self) -> str:
        """The ranks that have not arrived; rank 0 if its store does not answer."""
        self._asked.set()
        self._answered.wait(_ANSWER_S)
        return ", ".join(map(str, self._missing))

    def _look(self) -> None:
        with contextlib.suppress(DistError):  # the store is gone
            self._wait_for_all()
        self.over.set()

    def _wait_for_all(self) -> None:
        began, arrived = time.monotonic(), f"{self._turn}/arrived"
        self._store.set(f"{self._turn}/{self._rank}", "")
        self._store.add(arrived, 1)
        while self._store.add(arrived, 0) < self._size:
            self.signs = self._store.add("signs", 0)
            if self._asked.is_set():
                self._missing = [r for r in range(self._size) if not self._store.check([f"{self._turn}/{r}"])]
                self._answered.set()
            time.sleep(min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, _PAUSE * (time.monotonic() - began))))
        # All ranks have passed the barrier before this one, so its keys are not needed again.
        self._store.delete_key(f"{self._turn - 1}/{self._rank}")
        if self._rank == 0:
            self._store.delete_key(f"{self._turn - 1}/arrived")
