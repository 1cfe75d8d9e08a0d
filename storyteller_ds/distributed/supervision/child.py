"""What the training process reports to its supervisor, if it has one."""

import contextlib
import json
import os
import socket
from typing import Any

from storyteller_ds.distributed.heartbeat import make_progress
from storyteller_ds.distributed.supervision.lifeline import Address

_supervisor: socket.socket | None = None
_address: Address | None = None


def attach(supervisor: socket.socket, address: Address | None) -> None:
    """Set the connection to the supervisor; called once, after the fork.

    Args:
        supervisor: socket to the supervisor, of type SOCK_SEQPACKET.
        address: where rank 0's supervisor listens; None on the other ranks.
    """
    global _supervisor, _address  # state of the process
    supervisor.setblocking(False)
    _supervisor, _address = supervisor, address


def is_supervised() -> bool:
    """Whether this process has a supervisor."""
    return _supervisor is not None


def lifeline_address() -> Address | None:
    """On rank 0, where its supervisor listens, to be passed to join_lifeline on all ranks."""
    return _address


def join_lifeline(address: Address | None) -> None:
    """Make the supervisor connect to that of rank 0."""
    if address is not None and _address is None:
        _report(lifeline=address._replace(host=address.host or os.environ["MASTER_ADDR"]))


def report_step(step: int) -> None:
    """Report how many optimizer steps are done, for the message about a lost rank."""
    make_progress()
    _report(step=step)


def report_handlers() -> None:
    """Report that this process has signal handlers."""
    _report(has_handlers=True)


def _report(**message: Any) -> None:
    if _supervisor is not None:
        # A supervisor that does not read must not hold up training; one that is gone takes this process with it.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            _supervisor.send(json.dumps(message).encode())
