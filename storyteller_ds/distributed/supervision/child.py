"""What the process that trains says to its supervisor, through a pipe; nothing, if it has none."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from storyteller_ds.distributed.heartbeat import make_progress
from storyteller_ds.distributed.supervision.lifeline import Address

_pipe: int | None = None
_hub: Address | None = None


def attach(pipe: int, hub: Address | None) -> None:
    """Called once, after the fork.

    Args:
        pipe: end to write to.
        hub: where rank 0's supervisor listens; None on the other ranks.
    """
    global _pipe, _hub  # facts about the process
    os.set_blocking(pipe, False)
    _pipe, _hub = pipe, hub


def is_supervised() -> bool:
    """Whether this process has a supervisor."""
    return _pipe is not None


def hub_address() -> Address | None:
    """Rank 0: where its supervisor listens, to be passed to join_lifeline on all ranks."""
    return _hub


def join_lifeline(hub: Address | None) -> None:
    """Have the supervisor connect to that of rank 0."""
    if hub is not None and _hub is None:
        _say({"lifeline": hub._replace(host=hub.host or os.environ["MASTER_ADDR"])})


def report_step(step: int) -> None:
    """Say how many optimizer steps are done, for the line about a lost rank."""
    make_progress()
    _say({"step": step})


def announce(**handled: bool) -> None:
    """Say what signals mean here.

    Args:
        handled: listens: this process has handlers for them; saves: it finishes the step and saves before it ends.
    """
    _say(handled)


@contextlib.contextmanager
def waiting(seconds: float, complaint: str) -> Iterator[None]:
    """Have the supervisor end this process if the block takes longer: some waits of torch cannot be limited otherwise.

    Args:
        seconds: the limit.
        complaint: what the supervisor says then; exit code 2.
    """
    _say({"wait_s": seconds, "complaint": complaint})
    try:
        yield
    finally:
        _say({"wait_s": None})


def _say(message: dict[str, Any]) -> None:
    if _pipe is not None:
        # A supervisor that does not read must not hold up training; one that is gone takes this process with it.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(_pipe, json.dumps(message).encode() + b"\n")
