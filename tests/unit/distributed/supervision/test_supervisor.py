"""What a rank's supervisor does with signals; the child is a script without torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from storyteller_ds.distributed.supervision.signals import ASKING_TO_END

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="supervision is for Linux")

WAIT_S = 60
PROGRAM = """
import os, signal, sys, time
from storyteller_ds.distributed.supervision import child, supervisor
from storyteller_ds.distributed.supervision.supervisor import supervise

supervisor.SAVE_S = {save_s}
{faked}
supervise()
heard = []
{handlers}
print(os.getpid(), flush=True)
while {goes_on}:
    time.sleep(0.01)
print(*heard, flush=True)
os._exit({code})
"""
LISTENS = """
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: heard.append(number))
child.report_handlers()
"""


class Supervised:
    """A supervisor and its child, running alone in the environment of one rank of two."""

    def __init__(
        self,
        goes_on: str = "not heard",
        handlers: str = "",
        code: int = 75,
        save_s: float = 600,
        before: str = "",
        faked: str = "",
    ) -> None:
        program = PROGRAM.format(goes_on=goes_on, handlers=handlers, code=code, save_s=save_s, faked=faked)
        ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, "-c", program]
        if before:
            command = [sys.executable, "-c", before, *command]
        self.supervisor = subprocess.Popen(
            command, env={**os.environ, **ranks}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.supervisor.stdout is not None
        self.child = int(self.supervisor.stdout.readline())

    def ends(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the signals that the child received."""
        stdout, _ = self.supervisor.communicate(timeout=WAIT_S)
        return self.supervisor.returncode, stdout.strip()


@pytest.fixture
def supervised() -> Iterator[list[Supervised]]:
    started: list[Supervised] = []
    yield started
    for one in started:
        one.supervisor.kill()
        one.supervisor.communicate()


@pytest.mark.parametrize("number", ASKING_TO_END)
def test_a_signal_reaches_the_child_and_its_code_comes_back(number, supervised):
    supervised.append(Supervised(handlers=LISTENS))
    supervised[0].supervisor.send_signal(number)
    assert supervised[0].ends() == (75, str(int(number)))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75)])
def test_a_child_that_does_not_listen_yet_is_ended_safely(number, code, supervised):
    supervised.append(Supervised())
    supervised[0].supervisor.send_signal(number)
    assert supervised[0].ends() == (code, "")


def test_a_child_that_does_not_end_is_killed(supervised):
    supervised.append(Supervised(goes_on="True", handlers=LISTENS, save_s=0.5))
    supervised[0].supervisor.send_signal(signal.SIGTERM)
    assert supervised[0].ends() == (128 + signal.SIGKILL, "")


def test_every_signal_is_passed_on(supervised):
    # SIGHUP comes from the kernel and the shell, SIGTERM at system shutdown; the child decides what they mean.
    supervised.append(Supervised(goes_on="len(heard) < 3", handlers=LISTENS))
    one = supervised[0].supervisor
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
        one.send_signal(number)
        time.sleep(0.5)
    assert supervised[0].ends() == (75, "1 1 15")


def test_under_nohup_a_closed_terminal_is_not_heard(supervised):
    with_nohup = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    supervised.append(Supervised(handlers=LISTENS.replace(", signal.SIGHUP", ""), before=with_nohup))
    one = supervised[0].supervisor
    one.send_signal(signal.SIGHUP)
    one.send_signal(signal.SIGTERM)
    assert supervised[0].ends() == (75, "15")


@pytest.mark.parametrize("kills", [(5, 6), (5, 5)])
def test_a_rank_that_the_system_has_killed_for_memory_is_reported_with_what_to_lower(kills, supervised):
    faked = f"counts = iter({kills}); supervisor.out_of_memory_kills = lambda: next(counts)"
    supervised.append(Supervised(goes_on="True", faked=faked))
    os.kill(supervised[0].child, signal.SIGKILL)
    _, stderr = supervised[0].supervisor.communicate(timeout=WAIT_S)
    assert "killed by signal 9 (SIGKILL)" in stderr
    assert ("has run out of memory: lower train.micro_batch_size" in stderr) == (kills == (5, 6))
