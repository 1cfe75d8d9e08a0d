"""TCP ports of this machine: one that is free, and who holds one that is not."""

import os
import socket
from pathlib import Path

from storyteller_ds.distributed.supervision.processes import command_line, lines_of

_LISTENING = "0A"  # TCP_LISTEN in <net/tcp_states.h>, as /proc/net/tcp writes it


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listener_on(port: int) -> str:
    """Who listens on a TCP port of this machine: `pid 12 (python serve.py)`, as far as this user may see it."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in lines_of(Path(table))[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd") if sockets else ():
        if sockets & _links(folder):
            pid = int(folder.parent.name)
            words = command_line(pid)
            return f"pid {pid} ({' '.join(words)[:120]})"
    return "another process"


def _links(folder: Path) -> set[str]:
    links = set()
    try:
        for path in folder.iterdir():
            links.add(os.readlink(path))  # noqa: PTH115  # Path.readlink makes a Path of `socket:[1]`
    except OSError:
        pass
    return links
