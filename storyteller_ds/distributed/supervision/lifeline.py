"""TCP connections from all supervisors to that of rank 0; one that closes without a `bye` means a lost rank.

Messages are JSON objects, one per line:

    hello   {token, rank, host}   first from every supervisor; a connection without the right token is closed
    lost    {text, orderly}       a rank is lost
    ended   {code}                a rank has ended by itself with this nonzero exit code
    bye     {}                    last from every supervisor that leaves in an orderly way

Rank 0's supervisor passes `lost` and `ended` on to all. Keep-alive probes detect a machine without power or network
within SILENCE_S.
"""

import contextlib
import hmac
import json
import secrets
import selectors
import socket
from typing import Any, NamedTuple

SILENCE_S = 20
CONNECT_S = 5
_LONGEST_MESSAGE = 1 << 16


class Address(NamedTuple):
    """Where the supervisor of rank 0 listens."""

    host: str
    """Empty: MASTER_ADDR, where the process group's store is."""
    port: int
    token: str
    """Random; a connection that does not send it is closed."""
    name: str
    """Host name of rank 0, for messages."""


class Peer(NamedTuple):
    """The rank whose supervisor is at the other end of a connection."""

    rank: int
    host: str


class Lifeline:
    """One supervisor's end: on rank 0, connected to every other supervisor; elsewhere, only to that of rank 0.

    Nothing here blocks, except connecting.

    Args:
        listener: on rank 0, the socket to which the others connect.
    """

    def __init__(self, listener: socket.socket | None = None) -> None:
        self._listener, self._token = listener, secrets.token_hex(16)
        self._selector = selectors.PollSelector()  # unlike epoll, without a descriptor that a fork would share
        if listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    @classmethod
    def listen(cls, local: bool) -> "Lifeline":
        """Create rank 0's end.

        Args:
            local: whether all ranks are on this machine; then no other machine can connect.
        """
        if local or not socket.has_dualstack_ipv6():
            return cls(socket.create_server(("127.0.0.1" if local else "", 0)))
        return cls(socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True))

    @classmethod
    def connect(cls, to: Address, rank: int, host: str) -> "Lifeline":
        """Create any other rank's end.

        Args:
            to: address of rank 0's end.
            rank: rank of this supervisor.
            host: name of this machine.

        Raises:
            OSError: rank 0's supervisor cannot be reached.
        """
        lifeline = cls()
        lifeline._add(socket.create_connection((to.host, to.port), CONNECT_S), Peer(0, to.name))
        lifeline.send("hello", token=to.token, rank=rank, host=host)
        return lifeline

    def address(self, local: bool) -> Address:
        """The address for the other ranks; rank 0 only."""
        assert self._listener is not None
        port = self._listener.getsockname()[1]
        return Address("127.0.0.1" if local else "", port, self._token, socket.gethostname())

    def close_listener(self) -> None:
        """Close the listener in the training process, which inherits it."""
        if self._listener is not None:
            self._listener.close()

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message to every peer."""
        for connection in self._connections():
            if connection.peer is not None:
                connection.send({"kind": kind, **fields})

    def send_last(self, code: int | None) -> None:
        """Send `ended`, if there is a code, and `bye`, even to a peer that has only just connected and is not known."""
        while any(key.data is None for key, _ in self._selector.select(0)):
            self._accept()
        if self._listener is not None:
            # Later connections are refused. This process takes about 10 ms to exit, during which the kernel would
            # accept a connection and then close it without a message.
            self._selector.unregister(self._listener)
            self._listener.close()
        for connection in self._connections():
            if code is not None:
                connection.send({"kind": "ended", "code": code})
            connection.send({"kind": "bye"})

    def receive(self) -> tuple[list[dict[str, Any]], list[Peer]]:
        """Messages since the last call, and the peers whose connections have closed without a `bye`."""
        messages: list[dict[str, Any]] = []
        lost: list[Peer] = []
        for key, _ in self._selector.select(0):
            if key.data is None:
                self._accept()
                continue
            connection: _Connection = key.data
            received, closed = connection.receive()
            for message in received:
                if connection.peer is None:
                    connection.peer = self._peer(message)
                    closed = closed or connection.peer is None
                elif message.get("kind") == "bye":
                    connection.peer, closed = None, True
                else:
                    messages.append(message)
                if closed and connection.peer is None:
                    break
            if closed:
                self._selector.unregister(connection.socket)
                connection.socket.close()
                if connection.peer is not None:
                    lost.append(connection.peer)
        if self._listener is not None:
            for message in messages:
                self.send(**message)
        return messages, lost

    def _connections(self) -> "list[_Connection]":
        return [key.data for key in self._selector.get_map().values() if key.data is not None]

    def _add(self, connected: socket.socket, peer: Peer | None) -> None:
        self._selector.register(connected, selectors.EVENT_READ, _Connection(connected, peer))

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):  # gone before it was accepted
            self._add(self._listener.accept()[0], None)

    def _peer(self, hello: dict[str, Any]) -> Peer | None:
        right = hmac.compare_digest(str(hello.get("token")).encode("utf-8", "replace"), self._token.encode())
        return Peer(hello["rank"], hello["host"]) if right else None


class _Connection:
    """JSON lines over a socket, without blocking."""

    def __init__(self, connected: socket.socket, peer: Peer | None) -> None:
        self.socket, self.peer = connected, peer
        self._received = b""
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        tcp = (
            (socket.TCP_KEEPIDLE, SILENCE_S // 4),
            (socket.TCP_KEEPINTVL, SILENCE_S // 4),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, 1000 * SILENCE_S),
        )
        for option, value in tcp:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a broken connection is noticed when reading
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Messages since the last call, and whether the connection has closed."""
        try:
            data = self.socket.recv(_LONGEST_MESSAGE)
        except BlockingIOError:
            return [], False
        except OSError:
            return [], True
        *lines, self._received = (self._received + data).split(b"\n")
        try:
            messages = [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError, RecursionError):
            return [], True  # not from a supervisor
        return messages, not data or len(self._received) > _LONGEST_MESSAGE
