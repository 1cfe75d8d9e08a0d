"""A call that may hang in the system, such as looking up a name on a network that is down, and is not waited for."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def in_time(action: Callable[[], _T], seconds: float) -> _T:
    """What `action` returns or raises.

    Args:
        action: runs in another thread, which goes on if it is not in time.
        seconds: how long to wait.

    Raises:
        TimeoutError: it has not ended.
    """
    results: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            results.put((action(), None))
        except BaseException as error:
            results.put((None, error))

    # A daemon: a process that ends does not wait for it.
    threading.Thread(target=run, name="in_time", daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # there is one where there was no error
