"""The lifeline over real sockets of this machine, in one process."""

import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from storyteller_ds.distributed.supervision.lifeline import Hub, Loss, Spoke, as_message
from tests.support.distributed import wait_until

LOSS = Loss(1, "a", 7, "killed", "a:12", said=True, orderly=False)


class Notes:
    """A listener that writes down."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def lost(self, loss: Loss) -> None:
        self.heard.append(loss)

    def silent(self, rank: int, host: str, launcher: str) -> None:
        self.heard.append(("silent", rank, host, launcher))

    def ending(self, code: int) -> None:
        self.heard.append(("ending", code))


class Line:
    """A hub and some spokes, all driven by one selector."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.hub, self.at_hub = Hub(local=True), Notes()
        self.hub.attach(self.selector, self.at_hub)

    def spoke(self, rank: int) -> tuple[Spoke, Notes]:
        spoke, notes = Spoke(self.hub.address(), rank, f"host{rank}", f"host{rank}:5"), Notes()
        spoke.attach(self.selector, notes)
        return spoke, notes

    def until(self, condition: Callable[[], bool]) -> bool:
        def turn() -> bool:
            for key, _ in self.selector.select(0.01):
                key.data()
            return condition()

        return wait_until(turn, 20)

    def settle(self) -> None:
        """Everything sent so far has been heard."""
        spoke, _ = self.spoke(99)
        spoke.tell("bye", code=0)
        assert self.until(lambda: spoke._connection.socket.fileno() < 0)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    for key in list(line.selector.get_map().values()):
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.close()


def test_a_loss_reaches_everybody(line: Line):
    first, at_first = line.spoke(1)
    _, at_second = line.spoke(2)
    line.settle()
    first.tell("lost", **as_message(LOSS))
    assert line.until(lambda: line.at_hub.heard == [LOSS])
    # The supervisor of rank 0 passes it on.
    line.hub.tell("lost", **as_message(LOSS))
    assert line.until(lambda: at_first.heard == at_second.heard == [LOSS])


def test_a_closed_connection_is_a_lost_rank(line: Line):
    spoke, _ = line.spoke(3)
    line.settle()
    line.selector.unregister(spoke._connection.socket)
    spoke._connection.socket.close()
    assert line.until(lambda: line.at_hub.heard == [("silent", 3, "host3", "host3:5")])


def test_a_farewell_is_not(line: Line):
    leaving, _ = line.spoke(1)
    failing, _ = line.spoke(2)
    _, at_third = line.spoke(3)
    leaving.tell("bye", code=0)
    line.settle()
    assert line.at_hub.heard == at_third.heard == []
    failing.tell("bye", code=3)
    assert line.until(lambda: line.at_hub.heard == at_third.heard == [("ending", 3)])


def test_rank_0_gone(line: Line):
    _, at_first = line.spoke(1)
    line.settle()
    for peer in line.hub._peers:
        line.selector.unregister(peer.socket)
        peer.socket.close()
    assert line.until(lambda: at_first.heard == [("silent", 0, socket.gethostname(), "")])


def test_rank_0_leaving(line: Line):
    _, at_first = line.spoke(1)
    line.settle()
    line.hub.tell("bye", code=2)
    assert line.until(lambda: at_first.heard == [("ending", 2)])


@pytest.mark.parametrize(
    "greeting", [b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"kind": "hello", "token": "x", "rank": 1}\n', b"[]\n" * 9]
)
def test_strangers_are_hung_up_on(greeting: bytes, line: Line):
    with socket.create_connection(line.hub.address()[:2], 5) as stranger:
        stranger.sendall(greeting)
        stranger.shutdown(socket.SHUT_WR)
        line.settle()
        assert stranger.recv(10) == b""
    assert line.at_hub.heard == []


def test_the_line_names_rank_host_and_step():
    assert str(LOSS) == "lost rank 1 on a at step 7: killed"
    assert "before training" in str(Loss(1, "a", None, "killed", "a:12", said=True, orderly=False))
