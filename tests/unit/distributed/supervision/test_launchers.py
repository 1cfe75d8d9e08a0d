"""Signals under `storyteller launch`, with stand-in scripts that behave like DeepSpeed's two launchers."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support.distributed import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="supervision is for Linux")

WAIT_S = 60
RUNNER = """
import subprocess, sys  # dies of SIGINT and SIGTERM, as the deepspeed command does
sys.exit(subprocess.Popen([sys.executable, "-c", *sys.argv[2:]]).wait() % 256)
"""
LAUNCHER = """
import signal, subprocess, sys

def end(number, frame):
    rank.terminate()
    sys.exit(1)

signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
rank = subprocess.Popen([sys.executable, "-c", sys.argv[2]])
sys.exit(rank.wait())
"""
NO_RANK_YET = """
print("started", flush=True)
input()  # stdin is at its end: nobody is to read the terminal in the background
"""
SLOW = "import time; print('started', flush=True); time.sleep(1000)"
RANK = """
import os, signal, sys, time
heard = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: heard.append(number))
print("started", flush=True)
while not heard:
    time.sleep(0.01)
print(*heard, flush=True)
sys.exit(75)
"""
UNPREPARED = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("started", flush=True)
while True:
    time.sleep(0.01)
"""
PROGRAM = """
import sys
from storyteller_ds.cli.main import _run
from storyteller_ds.distributed.supervision.launchers import run_launchers
_run(lambda: sys.exit(run_launchers([sys.executable, "-c", *sys.argv[1:]])))
"""


class Launched:
    """A `storyteller launch` process, and under it the two launchers and a rank with the given code."""

    def __init__(self, rank: str, launcher: str = LAUNCHER, before: Callable[[], object] | None = None) -> None:
        command = [sys.executable, "-c", PROGRAM, RUNNER, "deepspeed.launcher.runner"]
        self.process = subprocess.Popen(
            [*command, launcher, "deepspeed.launcher.launch", rank],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=before,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "started\n"
        self.below: list[int] = []
        """Process ids of runner, launcher and rank, as far as these exist."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.below += [process.pid for process in psutil.Process(self.process.pid).children(recursive=True)]

    def ends(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit code, the signals that the rank received, and stderr."""
        stdout, stderr = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, stdout.strip(), stderr


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


@pytest.fixture
def launched() -> Iterator[Callable[..., Launched]]:
    started: list[Launched] = []

    def start(*arguments: str, before: Callable[[], object] | None = None) -> Launched:
        started.append(Launched(*arguments, before=before))
        return started[-1]

    yield start
    for one in started:
        for pid in (one.process.pid, *one.below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_only_the_ranks_hear_a_signal_and_their_code_comes_back(number, launched):
    one = launched(RANK)
    os.killpg(one.process.pid, number)  # as a terminal does
    assert one.ends() == (75, str(int(number)), "")


def test_the_stand_ins_do_as_deepspeed_does():
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, "deepspeed.launcher.runner", LAUNCHER, "deepspeed.launcher.launch", RANK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as bare:
        assert bare.stdout is not None
        assert bare.stdout.readline() == "started\n"
        os.killpg(bare.pid, signal.SIGINT)
        assert "KeyboardInterrupt" in bare.communicate(timeout=WAIT_S)[1]
        assert bare.returncode == -signal.SIGINT


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_run_that_nobody_signals_ends_with_its_code(code, launched):
    assert launched(f"print('started'); raise SystemExit({code})").ends() == (code, "", "")


def test_a_rank_that_is_killed_counts_as_in_a_shell(launched):
    kill = "import os; print('started', flush=True); os.kill(os.getpid(), 9)"
    assert launched(kill).ends() == (137, "", "")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("rank", [None, UNPREPARED])
def test_before_training_it_ends_at_once(number, code, rank, launched):
    one = launched(RANK, SLOW) if rank is None else launched(rank)
    below = [psutil.Process(pid) for pid in one.below]
    one.process.send_signal(number)
    seen, heard, stderr = one.ends()
    assert (seen, heard) == (code, "")
    if rank is None or number != signal.SIGINT:  # otherwise a real rank says it
        assert len(stderr.splitlines()) == 1, stderr
        assert stderr.startswith("storyteller: interrupted")
    assert wait_until(lambda: not any(is_alive(process) for process in below), WAIT_S)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_was_ignored_stays_ignored(number, launched):
    one = launched(
        RANK.replace(f"signal.{number.name}", "signal.SIGUSR2"), before=lambda: signal.signal(number, signal.SIG_IGN)
    )
    os.killpg(one.process.pid, number)
    one.process.send_signal(signal.SIGTERM)
    assert one.ends() == (75, str(int(signal.SIGTERM)), "")


def test_ctrl_z_stops_everything_and_fg_goes_on(launched):
    one = launched(RANK)
    below = one.below
    assert [is_stopped(pid) for pid in below] == [False] * 3
    os.killpg(one.process.pid, signal.SIGTSTP)
    assert wait_until(lambda: all(is_stopped(pid) for pid in (one.process.pid, *below)), WAIT_S)
    os.killpg(one.process.pid, signal.SIGCONT)
    assert wait_until(lambda: not any(is_stopped(pid) for pid in (one.process.pid, *below)), WAIT_S)
    one.process.send_signal(signal.SIGTERM)
    assert one.ends()[:2] == (75, str(int(signal.SIGTERM)))


def test_the_deepspeed_command_does_not_outlive_it(launched):
    one = launched(RANK)
    runner = psutil.Process(one.below[0])
    assert "deepspeed.launcher.runner" in runner.cmdline()
    one.process.kill()
    assert wait_until(lambda: not is_alive(runner), WAIT_S)


def test_nobody_reads_the_terminal_in_the_background(launched):
    code, _, stderr = launched(RANK, NO_RANK_YET).ends()
    assert code == 1
    assert "EOFError" in stderr
