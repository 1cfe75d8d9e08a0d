"""The process that a launcher starts: forks the training process, and ends when that, its launcher or a peer ends."""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import NoReturn

import psutil

from storyteller_ds.distributed.ranks import Ranks
from storyteller_ds.distributed.supervision import child
from storyteller_ds.distributed.supervision.lifeline import Address, Lifeline
from storyteller_ds.distributed.supervision.processes import (
    ON_LINUX,
    DeepSpeedCommand,
    out_of_memory_kills,
    signal_at_death_of_parent,
)
from storyteller_ds.distributed.supervision.signals import ASKING_TO_END, signals_to_handle
from storyteller_ds.errors import EXIT_INTERRUPTED, EXIT_PEER_LOST
from storyteller_ds.streams import print_unlocked

SAVE_S = 600
"""Time between a signal that asks the child to end and SIGKILL, in which it finishes its step and saves. A launcher
allows less, and a child that hangs is ended earlier by its watchdog."""
FOLLOW_S = 25
"""How long this rank may go on after another one has ended by itself with a nonzero exit code; longer than rank 0 is
given to report the error (cli/train.py)."""
SETTLE_S = 1.0
TICK_S = 0.1

_LAUNCHER_GONE = signal.SIGUSR2
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_AMBIGUOUS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT)
"""A launcher sends the first three to the child as well as to its supervisor, and gloo and NCCL abort when a peer is
gone: a child killed by one of these may not have been the first, and the lifeline reports the first within SETTLE_S."""
_LONGEST_REPORT = 1 << 12


def supervise() -> None:
    """Fork, and return in the process that will train; its parent becomes its supervisor and never returns.

    A process that no launcher started as one of several, or that is not on Linux, simply goes on. Must be called
    before torch is imported: a fork must not copy threads.

    Raises:
        ConfigError: the launcher's variables contradict each other.
    """
    ranks = Ranks.from_environment()
    if ranks.size == 1 or not ON_LINUX or child.is_supervised():
        return
    local = ranks.local_size == ranks.size
    lifeline = Lifeline.listen(local) if ranks.rank == 0 else None
    reports, of_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    me, launcher = os.getpid(), os.getppid()
    sys.stdout.flush()
    sys.stderr.flush()
    watched = (signal.SIGCHLD, *signals_to_handle(), _LAUNCHER_GONE)
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # in the supervisor forever: it receives them by sigtimedwait
    training = os.fork()
    if training == 0:
        signal_at_death_of_parent(signal.SIGKILL)
        if os.getppid() != me:
            os._exit(EXIT_PEER_LOST)
        reports.close()
        child.attach(of_child, None if lifeline is None else lifeline.address(local))
        if lifeline is not None:
            lifeline.close_listener()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        return
    of_child.close()
    Supervisor(ranks, training, launcher, reports, lifeline).run(watched)


class Supervisor:
    """Watches a training process, its launcher and the lifeline.

    Args:
        ranks: the rank of the training process.
        training: its pid.
        launcher: pid of this process's parent.
        reports: socket from the training process, one JSON object per packet.
        lifeline: rank 0's end; None on all other ranks, whose child reports where to connect.
    """

    def __init__(
        self, ranks: Ranks, training: int, launcher: int, reports: socket.socket, lifeline: Lifeline | None
    ) -> None:
        self.ranks, self.training, self.launcher = ranks, training, launcher
        self.reports, self.lifeline = reports, lifeline
        self.host = socket.gethostname()
        self.step: int | None = None
        self.has_handlers = False
        """Whether the child has signal handlers."""
        self.signals: set[int] = set()
        """Signals received so far."""
        self.end: int | None = None
        """Set by the first reason, other than signals to this process, for which the child must end: the exit code if a
        signal kills the child; 0 means 128 + the number of that signal."""
        self.deadline: float | None = None
        """When the child gets SIGKILL."""
        self.status: int | None = None
        """How the child ended: its exit code, or minus the number of the signal that killed it."""
        self.ended_at = 0.0
        self.memory_kills = out_of_memory_kills()
        reports.setblocking(False)
        signal_at_death_of_parent(_LAUNCHER_GONE)
        self.command: DeepSpeedCommand | None = None
        with contextlib.suppress(psutil.Error):  # gone already, which is noticed at once
            self.command = DeepSpeedCommand.above(psutil.Process(launcher))

    def run(self, watched: tuple[signal.Signals, ...]) -> NoReturn:
        """Run until the child has ended; exits with the child's exit code, or with one for the loss."""
        while (code := self._exit_code()) is None:
            arrived = signal.sigtimedwait(watched, TICK_S)
            while arrived is not None:
                if arrived.si_signo in ASKING_TO_END:
                    self._receive(arrived.si_signo)
                arrived = signal.sigtimedwait(watched, 0)
            self._look_at_launcher()
            self._read_reports()
            self._read_lifeline()
            if self.deadline is not None and time.monotonic() > self.deadline:
                self._kill(signal.SIGKILL)
        if self.lifeline is not None:
            self.lifeline.send_last(code if code != 0 and self.end is None else None)
        os._exit(code)

    @property
    def _asked(self) -> bool:
        """Whether a signal has asked this rank to end; SIGUSR1 only warns."""
        return bool(self.signals - {signal.SIGUSR1})

    def _exit_code(self) -> int | None:
        """The code with which this process must exit now; None: go on."""
        if self.status is None:
            pid, status = os.waitpid(self.training, os.WNOHANG)
            if pid == 0:
                return None
            self.status, self.ended_at = os.waitstatus_to_exitcode(status), time.monotonic()
            self._read_reports()
            self._read_lifeline()
        if self.status >= 0:
            return self.status
        by = -self.status
        if self.end is not None:
            return self.end or 128 + by
        if by in self.signals - {signal.SIGINT}:
            return EXIT_INTERRUPTED  # it had no handlers yet, or no longer: nothing is lost
        if self._asked:
            return 128 + by
        if by in _AMBIGUOUS and time.monotonic() < self.ended_at + SETTLE_S:
            return None
        how = f"killed by signal {by} ({_name(by)})"
        if by == signal.SIGKILL and out_of_memory_kills() > self.memory_kills:
            how += "; this machine has run out of memory: lower train.micro_batch_size, or start fewer ranks"
        self._lost(self._message(self.ranks.rank, self.host, how), report=self.lifeline is None)
        return 128 + by

    def _look_at_launcher(self) -> None:
        if self.end is not None or self._asked:
            return
        if os.getppid() != self.launcher:
            # The deepspeed command would exit with 0. The kernel wakes it and this process at the same moment, but it
            # needs a tenth of a second to exit, so the signal kills it first.
            if self.command is not None:
                with contextlib.suppress(psutil.Error):  # gone, or another user's
                    self.command.process.kill()
            how = f"its launcher (pid {self.launcher}) is gone"
        elif self.command is not None and self.command.is_gone():
            how = f"the deepspeed command (pid {self.command.process.pid}) is gone"
        else:
            return
        text = self._message(self.ranks.rank, self.host, how)
        self._lost(text, report=self.lifeline is None and self.ranks.local_rank == 0, orderly=True)

    def _receive(self, number: int) -> None:
        self.signals.add(number)
        self._read_reports()
        # Terminals and most launchers send SIGINT to the group; a child without handlers must not get it twice.
        if number != signal.SIGINT or self.has_handlers:
            self._kill(number)
        if self._asked:
            self._end_within(SAVE_S)

    def _read_reports(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while packet := self.reports.recv(_LONGEST_REPORT):
                message = json.loads(packet)
                self.step = message.get("step", self.step)
                self.has_handlers = message.get("has_handlers", self.has_handlers)
                if "lifeline" in message and self.status is None and self.lifeline is None:
                    self._connect(Address(*message["lifeline"]))

    def _read_lifeline(self) -> None:
        messages, silent = ([], []) if self.lifeline is None else self.lifeline.receive()
        for message in messages:
            if message["kind"] == "lost":
                self._end_lost(message["text"], message["orderly"], report=self.ranks.rank == 0)
            elif message["kind"] == "ended":
                self._follow(message["code"])
        for peer in silent:
            text = self._message(*peer, "its processes were killed, or its machine cannot be reached")
            # The loss of rank 0 is reported by rank 1, and by one rank of every other machine.
            self._lost(text, report=self.ranks.rank == 1 or self.ranks.local_rank == 0)

    def _connect(self, to: Address) -> None:
        try:
            self.lifeline = Lifeline.connect(to, self.ranks.rank, self.host)
        except ConnectionRefusedError:
            self._follow(EXIT_PEER_LOST)  # it was there, and has already gone
        except OSError as error:
            print_unlocked(
                f"rank {self.ranks.rank} on {self.host} cannot reach rank 0's supervisor at {to.host}:{to.port} "
                f"({error}); training goes on, but a rank lost on another machine is only noticed after "
                "parallel.timeout_minutes"
            )

    def _lost(self, text: str, report: bool, orderly: bool = False) -> None:
        """Tell the other ranks about a loss that this one has noticed, and end."""
        if self.lifeline is not None and self.end is None:
            self.lifeline.send("lost", text=text, orderly=orderly)
        self._end_lost(text, orderly, report or self.ranks.rank == 0)

    def _end_lost(self, text: str, orderly: bool, report: bool) -> None:
        """End the child of a run that has lost a rank.

        Args:
            text: which rank, and how.
            orderly: whether all ranks are still there and can be given time to save.
            report: whether this rank prints the text.
        """
        if self.end is not None:
            return
        self.end = 0 if orderly else EXIT_PEER_LOST
        if report:
            print_unlocked(text)
        self._kill(signal.SIGTERM if orderly else signal.SIGKILL)
        self._end_within(SAVE_S)

    def _follow(self, code: int) -> None:
        """End soon, since another rank has ended by itself and has reported why.

        At once if that rank did not wait either (128 + a signal), or if this one cannot do anything.
        """
        if self.end is not None:
            return
        self.end = code
        stopped = self.status is None and psutil.Process(self.training).status() in _STOPPED
        if stopped:
            print_unlocked(f"rank {self.ranks.rank} on {self.host} is stopped (SIGSTOP or a debugger), and is killed")
        self._end_within(SETTLE_S if stopped or code >= 128 else FOLLOW_S)

    def _end_within(self, seconds: float) -> None:
        """Send the child SIGKILL after this time, or at an earlier deadline."""
        deadline = time.monotonic() + seconds
        self.deadline = deadline if self.deadline is None else min(deadline, self.deadline)

    def _kill(self, number: int) -> None:
        if self.status is None:  # not yet waited for: the pid is still its own
            os.kill(self.training, number)

    def _message(self, rank: int, host: str, how: str) -> str:
        when = "before training" if self.step is None else f"at step {self.step}"
        return f"lost rank {rank} on {host} {when}: {how}"


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else signal.strsignal(number) or "unknown"
