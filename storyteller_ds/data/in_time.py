"""A time limit for calls that may hang in the system, such as looking up a name on a network that is down."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def in_time(action: Callable[[], _T], seconds: float) -> _T:
    """Run `action` with a time limit, and return or raise what it does.

    Args:
        action: runs in another thread, which keeps running after a timeout.
        seconds: how long to wait.

    Raises:
        TimeoutError: `action` has not ended in time.
    """
    results: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            results.put((action(), None))
        except BaseException as error:
            results.put((None, error))

    # A daemon thread does not keep the process from ending.
    threading.Thread(target=run, name="in_time", daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # there is one if there was no error
