"""Repeating a call while a long block runs."""

import contextlib
import threading
from collections.abc import Callable, Iterator

LINE_EVERY_S = 10.0
"""Interval between log lines during long work (seconds)."""

_LAST_CALL_S = 1.0
"""How long to wait at the end for a running call (seconds)."""


@contextlib.contextmanager
def meanwhile(action: Callable[[], object], every_s: float) -> Iterator[None]:
    """Call `action` repeatedly from another thread until the block ends.

    Args:
        action: must not raise.
        every_s: seconds before the first call and between calls.
    """
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            action()

    # A daemon thread, so that a process that ends abruptly does not wait for it.
    thread = threading.Thread(target=repeat, name="meanwhile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LAST_CALL_S)
