"""TCP ports of this machine: one that is free, and who listens on one that is not."""

import socket

import psutil


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def listener_on(port: int) -> str:
    """Who listens on a TCP port of this machine: `pid 12 (python serve.py)`, as far as this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
                return f"pid {connection.pid} ({' '.join(psutil.Process(connection.pid).cmdline())[:120]})"
    except psutil.Error:
        pass  # macOS asks for root; or the process has ended meanwhile
    return "another process"
