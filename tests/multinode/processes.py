"""Processes of a node, identified by a mark in their environment.

Children inherit it, even those that leave their parent or session, so nothing that a node has started is missed.
"""

import contextlib
import time
from collections.abc import Callable

import psutil

MARK = "STORYTELLER_TEST_NODE"


def processes_of(mark: str) -> list[psutil.Process]:
    """All live processes with this mark."""
    found = []
    for process in psutil.process_iter():
        # Processes that have ended or belong to another user are not ours.
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    """Send SIGKILL to all of them; some may already have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_marked(mark: str) -> None:
    """Send SIGKILL to every process with this mark, and to those that they start in the meantime."""

    def none_left() -> bool:
        kill(left := processes_of(mark))
        return not left

    wait_until(none_left, 30, f"processes of {mark} survive SIGKILL")


def wait_until(condition: Callable[[], object], limit_s: float, otherwise: str, poll_s: float = 0.1) -> None:
    """Poll a condition until it holds.

    Raises:
        TimeoutError: it did not hold within `limit_s` seconds; the message contains `otherwise`.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {limit_s} s: {otherwise}")
        time.sleep(poll_s)
