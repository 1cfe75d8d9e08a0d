"""Ports that ranks will listen on, seconds after they were chosen."""

import socket

import pytest

from storyteller_ds.distributed import ports
from storyteller_ds.distributed.ports import free_port


def test_what_the_system_gives_to_others_is_never_chosen():
    chosen = [free_port() for _ in range(50)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        given_by_the_system = listener.getsockname()[1]
    assert max(chosen) < 32_768 <= given_by_the_system
    assert len(set(chosen)) > 40  # programs that choose at the same time get different ports


def test_a_busy_port_is_passed_over(monkeypatch):
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        busy = listener.getsockname()[1]
        free = free_port()
        monkeypatch.setattr(ports.random.SystemRandom, "sample", lambda self, among, number: [busy, free])
        assert free_port() == free
        monkeypatch.setattr(ports.random.SystemRandom, "sample", lambda self, among, number: [busy])
        with pytest.raises(OSError, match="no free TCP port"):
            free_port()
