"""Sharing cores with other programs.

torch's threads share every operation, and each of them waits for the others by spinning: with libgomp (torch's builds
for Linux) for about 3 ms. That is fastest while each thread has its own core. Next to another program, a spinning
thread holds the core on which the thread that it waits for could run, and a step takes up to 40 times as long.

libgomp spins only a thousandth of that while it manages more threads than there are cores (GCC manual, GOMP_SPINCOUNT).
It counts the threads of all teams, and a thread that has once shared an operation keeps its team. So a second team that
does nothing makes all threads wait passively, and ending it makes them spin again: the only switch that works at run
time. No result changes, since an operation is divided among as many threads as before.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

LOOK_EVERY_S = 0.5
TAKEN, FREE = 0.2, 0.1
"""Cores in use by others: from TAKEN on, the threads of this process wait passively; below FREE, they spin again."""
DECIDED_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which users decide how threads wait."""
_ELEMENTS_A_THREAD = 1 << 16
"""torch gives a thread at least 2^15 elements of a sum (at::internal::GRAIN_SIZE)."""


class Neighbors:
    """How many of this process's cores other programs use.

    Args:
        ranks: processes of this run on this machine; they do the same work, so each counts as much as this one.
        read: returns the time, how long this process's cores have been busy, summed over them, and how much processor
            time this process has used (seconds); None if that is not known.
    """

    def __init__(self, ranks: int = 1, read: Callable[[], tuple[float, float, float] | None] | None = None) -> None:
        self.ranks = ranks
        self._read = read or _read_times
        self._last = self._read()
        self.cores_taken = 0.0
        """Mean between the last two looks; 0 if the system does not report it."""

    def look(self) -> float:
        """Measure the cores taken since the last look, and return them."""
        now, last = self._read(), self._last
        self._last = now
        if now is not None and last is not None and now[0] > last[0]:
            seconds, busy, own = (new - old for new, old in zip(now, last, strict=True))
            self.cores_taken = max(0.0, (busy - self.ranks * own) / seconds)
        return self.cores_taken


class CoreSharing:
    """Makes the threads of this process wait passively while other programs use its cores.

    Args:
        neighbors: what the other programs use.
        threads: number of threads among which an operation is divided.
        cores: number of cores that this process may use.
    """

    def __init__(self, neighbors: Neighbors, threads: int, cores: int) -> None:
        self._neighbors, self._threads, self._cores = neighbors, threads, cores
        self._idle: threading.Event | None = None
        """Ends the idle teams; None if there are none."""
        self._leaders: list[threading.Thread] = []

    def adjust(self) -> None:
        """Look at the other programs, and switch if they have started or stopped using the cores."""
        taken = self._neighbors.look()
        crowded = self._threads * self._neighbors.ranks + taken > self._cores
        if self._idle is None and taken >= TAKEN and crowded:
            self._wait_passively()
        elif taken < FREE:
            self.spin()

    def spin(self) -> None:
        """Make the threads spin while waiting, as by default."""
        if self._idle is not None:
            self._idle.set()
            self._idle = None
            while self._leaders:
                self._leaders.pop().join()

    def _wait_passively(self) -> None:
        """Start teams that do nothing, until libgomp manages more threads than there are cores."""
        self._idle = threading.Event()
        # The team of the computing thread already exists.
        for _ in range(-(-(self._cores + 1 - self._threads) // (self._threads - 1))):
            ready = threading.Event()
            arguments = (self._threads, ready, self._idle)
            leader = threading.Thread(target=_lead_idle_team, args=arguments, name="idle team", daemon=True)
            leader.start()
            self._leaders.append(leader)
            ready.wait()


@contextlib.contextmanager
def shared_cores(ranks: int = 1) -> Iterator[Neighbors]:
    """In this context, the threads of this process wait passively while other programs use its cores.

    Costs a look at /proc/stat every LOOK_EVERY_S. Threads wait as before if torch has another OpenMP library, or if
    the user has set one of DECIDED_BY_USER.

    Args:
        ranks: processes of this run on this machine.

    Yields:
        What is known about the other programs, kept up to date.
    """
    neighbors = Neighbors(ranks)
    threads = torch.get_num_threads()
    decided = any(os.environ.get(name) for name in DECIDED_BY_USER)
    sharing = None
    if sys.platform.startswith("linux") and threads > 1 and not decided:
        sharing = CoreSharing(neighbors, threads, len(os.sched_getaffinity(0)))
    look = neighbors.look if sharing is None else sharing.adjust
    end = threading.Event()
    looking = threading.Thread(target=_keep_looking, args=(look, end), name="neighbors", daemon=True)
    looking.start()
    try:
        yield neighbors
    finally:
        # Joined also because a thread that Python ends in the middle of torch's work aborts the process.
        end.set()
        looking.join()
        if sharing is not None:
            sharing.spin()


def _keep_looking(look: Callable[[], object], end: threading.Event) -> None:
    while not end.wait(LOOK_EVERY_S):
        look()


def _lead_idle_team(threads: int, ready: threading.Event, end: threading.Event) -> None:
    torch.zeros(threads * _ELEMENTS_A_THREAD).add_(1.0)
    ready.set()
    end.wait()


def _read_times() -> tuple[float, float, float] | None:
    """What Neighbors reads; how long the cores have been busy comes from /proc/stat (proc(5)); None without it.

    Time taken away by a hypervisor is not counted: nothing here can use it.
    """
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for name, *columns in (line.split() for line in lines if line.startswith("cpu")):
        if name in mine:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, columns[:7])
            ticks += user + nice + system + irq + softirq
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
