"""TCP ports of this machine: finding a free one, and who listens on one that is taken."""

import contextlib
import random
import socket

import psutil

CANDIDATES = range(20_000, 30_000)
"""Below the ports that systems use for outgoing connections and for requests for any port (Linux: from 32768)."""


def free_port() -> int:
    """A TCP port of the loopback interface that is free now, and probably still is when ranks use it seconds later.

    Raises:
        OSError: none of many tried is free.
    """
    for port in random.SystemRandom().sample(CANDIDATES, 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(f"no free TCP port found among those from {CANDIDATES.start} to {CANDIDATES.stop - 1}")


def listener_on(port: int) -> str:
    """Who listens on a TCP port of this machine, such as `pid 12 (python serve.py)`, if this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
                return f"pid {connection.pid} ({' '.join(psutil.Process(connection.pid).cmdline())[:120]})"
    except psutil.Error:
        pass  # macOS requires root; or the process has ended in the meantime
    return "another process"
