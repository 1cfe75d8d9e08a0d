"""The deepspeed command above a launcher; Linux only."""

import contextlib
import os
import subprocess
import sys

import psutil
import pytest

from storyteller_ds.distributed.supervision.processes import DeepSpeedCommand

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def test_only_a_deepspeed_command_is_one():
    # pytest is no launcher; ending what is above it would be a surprise.
    assert DeepSpeedCommand.above(psutil.Process()) is None
    assert DeepSpeedCommand.above(psutil.Process(os.getppid())) is None


@pytest.fixture
def process():
    """Start processes that wait to be ended, under any name."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, code: str = "print(flush=True); input()") -> subprocess.Popen:
            line = [sys.executable, "-c", code, *words]
            started = stack.enter_context(
                subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(started.kill)
            started.stdout.readline()  # its command line is only there once it runs
            return started

        yield start


def above(launcher: subprocess.Popen) -> DeepSpeedCommand | None:
    return DeepSpeedCommand.above(psutil.Process(launcher.pid))


RUN = ("--world_info=abc", "--master_port=29500")


def test_the_deepspeed_command_is_found_through_pdsh(process, tmp_path):
    # deepspeed -> pdsh -> ssh ... sshd -> launcher: on the machine of the first two, the launcher is not below them.
    command = tmp_path / "deepspeed"
    command.write_text(
        "import subprocess, sys\n"
        "line = ['pdsh', '-c', 'print(flush=True); input()', *sys.argv[1:]]\n"
        "subprocess.Popen(line, executable=sys.executable, stdin=subprocess.PIPE).wait()\n"
    )
    become = f"import os, sys; os.execv(sys.executable, [sys.executable, {str(command)!r}, *sys.argv[1:]])"
    runner = process(*RUN, code=become)
    ours = process("deepspeed.launcher.launch", *RUN)
    found = above(ours)
    assert found is not None
    assert found.process.pid == runner.pid
    # Controls: another run's launcher, and what is no launcher.
    assert above(process("deepspeed.launcher.launch", RUN[0], "--master_port=1")) is None
    assert above(process(*RUN)) is None
    # It is gone as soon as it has ended, even if nobody has waited for it.
    assert not found.is_gone()
    runner.kill()
    os.waitid(os.P_PID, runner.pid, os.WEXITED | os.WNOWAIT)
    assert found.is_gone()
