"""Clean interruption of commands that write files."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """End the block as Ctrl-C does on SIGTERM, or when the terminal closes, so that partial output is removed."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature that signal requires
    raise KeyboardInterrupt
