"""Runs DeepSpeed's launchers so that a signal asks the ranks to end while the launchers wait for them.

Without this, Ctrl-C ends the `deepspeed` command with a traceback while the ranks are still saving, and the launcher
below it kills the ranks after 30 s and exits with an error. Here both are in a process group that gets no signals from
the terminal. Signals to this process are forwarded to the ranks, whose exit code comes back through the launchers.
"""

import contextlib
import os
import signal
import subprocess

import psutil

from storyteller_ds.distributed.supervision.processes import is_deepspeed_launcher, signal_at_death_of_parent
from storyteller_ds.distributed.supervision.signals import outside_training, signals_to_handle
from storyteller_ds.errors import EXIT_PEER_LOST

_LAST_OF_OURS = 192
"""Higher codes mean that a rank was killed by signal n: DeepSpeed's launcher exits with -n, which becomes 256 - n."""


def run_launchers(command: list[str]) -> int:
    """Run the `deepspeed` command until it ends, on Linux; signals are blocked in this process from then on.

    Returns:
        The exit code of the first rank that ended with a nonzero one; 0 if all are done.

    Raises:
        Interrupted: SIGINT arrived before there were ranks.
        InterruptedSafely: another signal arrived before there were ranks.
    """
    forwarded = signals_to_handle()
    watched = {signal.SIGCHLD, signal.SIGTSTP, *forwarded}
    me = os.getpid()

    def prepare() -> None:
        signal_at_death_of_parent(signal.SIGTERM)
        if os.getppid() != me:
            os._exit(EXIT_PEER_LOST)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # the launchers write to the terminal from the background
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)

    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    runner = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=prepare)
    asked: list[int] = []
    reached = False
    while runner.poll() is None:
        number = signal.sigwait(watched)
        if number == signal.SIGTSTP:  # Ctrl-Z
            os.killpg(runner.pid, signal.SIGSTOP)
            os.kill(me, signal.SIGSTOP)
            os.killpg(runner.pid, signal.SIGCONT)
        elif number in forwarded:
            asked.append(number)
            reached = _pass_on(number, runner.pid) or reached
            if not reached:
                os.killpg(runner.pid, signal.SIGTERM)
    code = runner.returncode if runner.returncode <= _LAST_OF_OURS else runner.returncode - 256  # see sys.exit(-9)
    killed_by = -code if code < 0 else None
    if asked and (not reached or killed_by == asked[0]):  # a rank that has only just started is killed by the signal
        raise outside_training(asked[0])
    return code if killed_by is None else 128 + killed_by


def _pass_on(number: int, runner: int) -> bool:
    """Signal all ranks; returns whether there are any."""
    reached = False
    with contextlib.suppress(psutil.Error):
        for launcher in filter(is_deepspeed_launcher, psutil.Process(runner).children()):
            for rank in launcher.children():
                # A supervisor does not pass SIGINT on, since a terminal sends it to all.
                for process in (rank, *(rank.children() if number == signal.SIGINT else ())):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(number)
                        reached = True
    return reached
