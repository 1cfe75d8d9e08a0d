"""A launcher whose ranks skip imports: they are forked from a process that has imported torch and DeepSpeed.

Importing takes ten times as long as an entire run of this kind. Nothing is computed before the fork, as in
storyteller_ds/certify/run.py, whose list of modules this process imports.

It reads requests, one JSON object per line, and answers each with one line:

    {"command": ["script.py", ...], "ranks": 2, "stdout": F, "stderr": F, "env": {...}}
        -> pid of a launcher
    {"ended": pid}
        -> its exit code; null if it is still running

The launcher does what deepspeed's does: it passes SIGTERM and SIGUSR1 on to its ranks, and when one ends with an
error, it ends the others with SIGTERM, after 30 s with SIGKILL, and exits with the code of the first. Each run is its
own session, whose ID identifies all of the run's processes.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

GRACE_S = 30
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
"""Not SIGINT, which a terminal sends to all processes."""


def serve() -> None:
    """Serve requests until the input ends."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from storyteller_ds.certify.run import WARM_MODULES

    for module in (*WARM_MODULES, "storyteller_ds.cli.train"):
        importlib.import_module(module)

    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_ended(request["ended"]) if "ended" in request else _start(request)), flush=True)


def _ended(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.environ.update(request["env"])
        for descriptor, path, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        ):
            os.dup2(os.open(path, flags, 0o644), descriptor)
        _launch(request)
    return pid


def _launch(request: dict[str, Any]) -> NoReturn:
    # Signals arrive only through sigtimedwait, so that the end of a rank between checking and waiting is not missed.
    watched = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    running = {_fork_rank(request, rank, port, watched) for rank in range(request["ranks"])}
    code, deadline = 0, None
    while running:
        arrived = signal.sigtimedwait(watched, 0.5)
        if arrived is not None and arrived.si_signo in _PASSED_ON:
            _signal(running, arrived.si_signo)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            running.discard(pid)
            ended = os.waitstatus_to_exitcode(status)
            if ended != 0 and deadline is None:
                code = ended if ended > 0 else 128 - ended
                deadline = time.monotonic() + GRACE_S
                _signal(running, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal(running, signal.SIGKILL)
    os._exit(code)


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)  # not reaped yet, so the pid is still that process


def _fork_rank(request: dict[str, Any], rank: int, port: int, blocked: tuple[signal.Signals, ...]) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    ranks = request["ranks"]
    if ranks > 1 or "--ds_config" in request["command"]:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    be_rank(request["command"])


def be_rank(command: list[str]) -> NoReturn:
    """Run a Python script with its arguments in this process."""
    code: object = 1
    try:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).parent)
        sys.path.append(str(Path(__file__).resolve().parents[2]))  # for tests.support, which is not installed
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve()
