"""The deepspeed command above a launcher, and who listens on a port; Linux only."""

import contextlib
import os
import socket
import subprocess
import sys

import psutil
import pytest

from storyteller_ds.distributed.ports import free_port, listener_on
from storyteller_ds.distributed.supervision.processes import DeepSpeedCommand

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def test_only_a_deepspeed_command_is_one():
    # pytest is not a launcher; ending the process above it would be a surprise.
    assert DeepSpeedCommand.above(psutil.Process()) is None
    assert DeepSpeedCommand.above(psutil.Process(os.getppid())) is None


@pytest.fixture
def process():
    """Start processes that wait to be ended, with any words in their command line."""
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
    # deepspeed -> pdsh -> ssh ... sshd -> launcher: even on the machine of the first two, it is not their descendant.
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
    # Controls: another run's launcher, and a process that is not a launcher.
    assert above(process("deepspeed.launcher.launch", RUN[0], "--master_port=1")) is None
    assert above(process(*RUN)) is None
    # It counts as gone once it has ended, even if nobody has waited for it.
    assert not found.is_gone()
    runner.kill()
    os.waitid(os.P_PID, runner.pid, os.WEXITED | os.WNOWAIT)
    assert found.is_gone()


def test_who_listens_on_a_port():
    port = free_port()
    code = "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        holder_name = listener_on(port)
        assert f"pid {holder.pid} " in holder_name
        assert sys.executable in holder_name
        holder.communicate(b"\n")
    assert listener_on(port) == "another process"


def test_a_connected_socket_is_no_listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert f"pid {os.getpid()} " in listener_on(port)
            assert listener_on(client.getsockname()[1]) == "another process"
