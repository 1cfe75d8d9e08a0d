"""A TCP connection from every supervisor to that of rank 0, whose end without a farewell is a lost rank.

Messages are JSON objects, one a line:

    hello   {token, rank, host, launcher}   first from every supervisor; without the right token it is hung up on
    lost    the fields of Loss              a rank is lost; rank 0's supervisor passes it on to all
    ending  {code}                          passed on likewise: a rank has ended by itself with this exit code, not 0
    bye     {code}                          the last from every supervisor that leaves in order

Keep-alive probes are sent, so that a machine without power or network is missed within SILENCE_S.
"""

import contextlib
import dataclasses
import hmac
import json
import secrets
import selectors
import socket
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

SILENCE_S = 20
CONNECT_S = 5
_LONGEST_MESSAGE = 1 << 16


class Address(NamedTuple):
    """Where rank 0's supervisor listens."""

    host: str
    """Empty: where the process group's store is, MASTER_ADDR."""
    port: int
    token: str
    """Random; keeps strangers out."""
    name: str
    """Host name of rank 0, for people."""


@dataclass(frozen=True)
class Loss:
    """Why a run must end."""

    rank: int
    host: str
    step: int | None
    """Optimizer steps done; None before training."""
    how: str
    launcher: str
    """Of the lost rank, host:pid: those under the same one share a terminal."""
    said: bool
    """Whether the lost rank's own supervisor has told the user."""
    orderly: bool
    """Whether all ranks are still there, and can be given the time to end by themselves."""

    def __str__(self) -> str:
        when = "before training" if self.step is None else f"at step {self.step}"
        return f"lost rank {self.rank} on {self.host} {when}: {self.how}"


class Listener(Protocol):
    """What a supervisor wants to hear."""

    def lost(self, loss: Loss) -> None:
        """A rank is lost."""

    def silent(self, rank: int, host: str, launcher: str) -> None:
        """The supervisor of a rank has gone without a farewell."""

    def ending(self, code: int) -> None:
        """Some rank has ended by itself with this exit code, which is not 0."""


class _Connection:
    """JSON lines over a socket, without ever waiting."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
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

    def send(self, kind: str, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # that it is broken is found when reading
            self.socket.send(json.dumps({"kind": kind, **fields}).encode() + b"\n")

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Messages since the last call, and whether they were the last ones."""
        try:
            data = self.socket.recv(_LONGEST_MESSAGE)
        except BlockingIOError:
            return [], False
        except OSError:
            return [], True
        *lines, self._received = (self._received + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if not all(isinstance(message, dict) for message in messages):
            return [], True  # no supervisor
        return messages, not data or len(self._received) > _LONGEST_MESSAGE


class Hub:
    """Rank 0's end, with a connection to every other supervisor.

    Args:
        local: whether all ranks are on this machine; then nobody else can connect.
    """

    def __init__(self, local: bool) -> None:
        self._local, self._token = local, secrets.token_hex(16)
        if local:
            self.socket = socket.create_server(("127.0.0.1", 0))
        elif socket.has_dualstack_ipv6():
            self.socket = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self.socket = socket.create_server(("", 0))
        self.socket.setblocking(False)
        self._peers: dict[_Connection, dict[str, Any]] = {}

    def address(self) -> Address:
        """For the others."""
        host = "127.0.0.1" if self._local else ""
        return Address(host, self.socket.getsockname()[1], self._token, socket.gethostname())

    def attach(self, selector: selectors.BaseSelector, listener: Listener) -> None:
        """Listen from now on; the selector's keys carry what to call."""
        self._selector, self._listener = selector, listener
        selector.register(self.socket, selectors.EVENT_READ, self._accept)

    def tell(self, kind: str, **fields: Any) -> None:
        """Send to all."""
        for peer in self._peers:
            peer.send(kind, **fields)

    def _accept(self) -> None:
        try:
            peer = _Connection(self.socket.accept()[0])
        except OSError:
            return  # gone before it was accepted
        self._selector.register(peer.socket, selectors.EVENT_READ, lambda: self._hear(peer))

    def _hear(self, peer: _Connection) -> None:
        messages, ended = peer.receive()
        for message in messages:
            kind = message.pop("kind", None)
            if peer not in self._peers:
                if kind != "hello" or not hmac.compare_digest(str(message.pop("token", "")), self._token):
                    ended = True
                    break
                self._peers[peer] = message
            elif kind == "lost":
                self._listener.lost(Loss(**message))
            elif kind == "bye":
                del self._peers[peer]
                ended = True
                if message["code"]:
                    self.tell("ending", code=message["code"])
                    self._listener.ending(message["code"])
        if ended:
            self._selector.unregister(peer.socket)
            peer.socket.close()
            if (who := self._peers.pop(peer, None)) is not None:
                self._listener.silent(**who)


class Spoke:
    """Every other rank's end.

    Raises:
        OSError: rank 0's supervisor cannot be reached.
    """

    def __init__(self, hub: Address, rank: int, host: str, launcher: str) -> None:
        self._hub = hub
        self._connection = _Connection(socket.create_connection((hub.host, hub.port), CONNECT_S))
        self.tell("hello", token=hub.token, rank=rank, host=host, launcher=launcher)

    def attach(self, selector: selectors.BaseSelector, listener: Listener) -> None:
        """Listen from now on; the selector's keys carry what to call."""
        self._selector, self._listener = selector, listener
        selector.register(self._connection.socket, selectors.EVENT_READ, self._hear)

    def tell(self, kind: str, **fields: Any) -> None:
        """Send to rank 0's supervisor, who passes it on."""
        self._connection.send(kind, **fields)

    def _hear(self) -> None:
        messages, ended = self._connection.receive()
        farewell = False
        for message in messages:
            kind = message.pop("kind", None)
            if kind == "lost":
                self._listener.lost(Loss(**message))
            elif kind in ("ending", "bye"):
                farewell = farewell or kind == "bye"
                if message["code"]:
                    self._listener.ending(message["code"])
        if ended or farewell:
            self._selector.unregister(self._connection.socket)
            self._connection.socket.close()
            if not farewell:
                self._listener.silent(rank=0, host=self._hub.name, launcher="")


def as_message(loss: Loss) -> dict[str, Any]:
    """The fields of a `lost` message."""
    return dataclasses.asdict(loss)
