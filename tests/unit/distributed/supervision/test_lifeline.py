"""The lifeline over real sockets on this machine, in one process."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from storyteller_ds.distributed.supervision.lifeline import Lifeline, Peer
from tests.support.distributed import wait_until

LOST = {"kind": "lost", "text": "lost rank 1 on a at step 7: killed", "orderly": False}


class End:
    """One rank's end of the lifeline, and what it has received."""

    def __init__(self, lifeline: Lifeline) -> None:
        self.lifeline = lifeline
        self.messages: list[dict[str, Any]] = []
        self.lost: list[Peer] = []

    def receive(self) -> None:
        messages, lost = self.lifeline.receive()
        self.messages += messages
        self.lost += lost

    def close(self) -> None:
        for connection in self.lifeline._connections():
            self.lifeline._selector.unregister(connection.socket)
            connection.socket.close()

    def connections(self) -> int:
        return len(self.lifeline._connections())


class Line:
    """Rank 0's end and some others."""

    def __init__(self) -> None:
        self.ends = [End(Lifeline.listen(local=True))]
        self.hub = self.ends[0]

    def connect(self, rank: int) -> End:
        self.ends.append(End(Lifeline.connect(self.hub.lifeline.address(local=True), rank, f"host{rank}")))
        assert self.until(lambda: self.hub.connections() == len(self.ends) - 1)
        return self.ends[-1]

    def until(self, condition: Callable[[], bool]) -> bool:
        def turn() -> bool:
            for end in self.ends:
                end.receive()
            return condition()

        return wait_until(turn, 20)

    def settle(self) -> None:
        """Wait until everything sent so far has been received."""
        end = End(Lifeline.connect(self.hub.lifeline.address(local=True), 99, "host99"))
        end.lifeline.send("mark")
        assert self.until(lambda: self.hub.messages[-1:] == [{"kind": "mark"}])
        self.hub.messages.pop()
        end.lifeline.send("bye")
        assert self.until(lambda: not self.hub.lost or self.hub.lost[-1].rank != 99)
        for each in self.ends[1:]:
            assert self.until(lambda each=each: {"kind": "mark"} in each.messages or not each.connections())
            each.messages = [message for message in each.messages if message != {"kind": "mark"}]


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    for end in line.ends:
        end.close()
    line.hub.lifeline.close_listener()


def test_a_message_reaches_everybody(line: Line):
    first, second = line.connect(1), line.connect(2)
    first.lifeline.send(**LOST)
    assert line.until(lambda: all(end.messages == [LOST] for end in (line.hub, first, second)))


def test_what_rank_0_sends_reaches_everybody(line: Line):
    first, second = line.connect(1), line.connect(2)
    line.settle()
    line.hub.lifeline.send("ended", code=2)
    assert line.until(lambda: first.messages == second.messages == [{"kind": "ended", "code": 2}])


def test_a_closed_connection_is_a_lost_rank(line: Line):
    leaving = line.connect(3)
    line.settle()
    leaving.close()
    assert line.until(lambda: line.hub.lost == [Peer(3, "host3")])


def test_one_that_closes_after_a_bye_is_not(line: Line):
    leaving, other = line.connect(1), line.connect(2)
    leaving.lifeline.send("ended", code=3)
    leaving.lifeline.send("bye")
    leaving.close()
    assert line.until(lambda: line.hub.messages == other.messages == [{"kind": "ended", "code": 3}])
    line.settle()
    assert line.hub.lost == other.lost == []


def test_rank_0_gone(line: Line):
    first = line.connect(1)
    line.settle()
    line.hub.close()
    assert line.until(lambda: first.lost == [Peer(0, socket.gethostname())])


def test_rank_0_leaving(line: Line):
    first = line.connect(1)
    line.settle()
    line.hub.lifeline.send("bye")
    line.hub.close()
    assert line.until(lambda: not first.connections())
    assert first.lost == first.messages == []


def test_rank_0_leaving_before_it_has_seen_that_a_rank_connected():
    hub = Lifeline.listen(local=True)
    peer = End(Lifeline.connect(hub.address(local=True), 1, "host1"))
    address = hub.address(local=True)
    hub.send_last(2)
    with pytest.raises(ConnectionRefusedError):
        Lifeline.connect(address, 2, "host2")
    End(hub).close()
    assert wait_until(lambda: (peer.receive(), bool(peer.messages))[1], 30)
    peer.receive()
    assert (peer.messages, peer.lost) == ([{"kind": "ended", "code": 2}], [])


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b'{"kind": "hello", "token": "x", "rank": 1}\n',
        b"[]\n" * 9,
        b"[" * 30000 + b"\n",
        b'{"token": "\xc3\xa9"}\n',
        b'{"token": "\\ud800"}\n',
    ],
)
def test_strangers_are_hung_up_on(greeting: bytes, line: Line):
    with socket.create_connection(line.hub.lifeline.address(local=True)[:2], 5) as stranger:
        stranger.sendall(greeting)
        stranger.shutdown(socket.SHUT_WR)
        line.settle()
        assert stranger.recv(10) == b""
    assert line.hub.messages == line.hub.lost == []
