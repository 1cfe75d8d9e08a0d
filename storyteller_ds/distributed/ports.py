"""TCP ports of this machine: one that is free, and who listens on one that is not."""

import contextlib
import random
import socket

import psutil

CANDIDATES = range(20_000, 30_000)
"""Below the ports that systems give to outgoing connections and to who asks for any (Linux: from 32768)."""


def free_port() -> int:
    """A TCP port of the loopback interface that is free now, and probably still when ranks listen on it seconds later.

    Raises:
        OSError: none of many is free.
    """
    for port in random.SystemRandom().sample(CANDIDATES, 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(f"no free TCP port found among those from {CANDIDATES.start} to {CANDIDATES.stop - 1}")


def listener_on(port: int) -> str:
    """Who listens on a TCP port of this machine: `pid 12 (python serve.py)`, as far as this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
                return f"pid {connection.pid} ({' '.join(psutil.Process(connection.pid).cmdline())[:120]})"
    except psutil.Error:
        pass  # macOS asks for root; or the process has ended meanwhile
    return "another process"
