"""The process that a launcher starts: forks the one that trains, and ends when it, its launcher or a peer ends."""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from types import FrameType
from typing import NoReturn

from storyteller_ds.distributed.ranks import Ranks
from storyteller_ds.distributed.supervision import child
from storyteller_ds.distributed.supervision.lifeline import Address, Hub, Loss, Spoke, as_message
from storyteller_ds.distributed.supervision.processes import (
    ON_LINUX,
    Process,
    deepspeed_runner,
    is_stopped,
    out_of_memory_kills,
    signal_at_death_of_parent,
)
from storyteller_ds.distributed.supervision.signals import ASKING_TO_END, heard
from storyteller_ds.errors import EXIT_INTERRUPTED, EXIT_PEER_LOST, EXIT_USER_ERROR
from storyteller_ds.streams import write_unlocked

GRACE_S = 20
"""From SIGTERM to SIGKILL; under the 30 s after which launchers kill the supervisor itself."""
SAVE_S = 600
"""The same for a child that finishes its step and saves (training/interruption.py), if its launcher lets it; one that
hangs is ended earlier by its watchdog."""
ONE_EVENT_S = 2.0
"""Signals within this time are one and the same: a launcher sends some of them twice."""
FOLLOW_S = 25
"""How long after another rank's orderly end with an exit code that is not 0 this one may go on; longer than
rank 0 is given to speak (cli/train.py)."""
SETTLE_S = 1.0
TICK_S = 0.5

_LAUNCHER_GONE = signal.SIGUSR2
_AMBIGUOUS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT)
"""A launcher sends the first three to the child as well as to its supervisor, and gloo and NCCL abort when a peer
is gone: a child that died of these has not told why, but within SETTLE_S somebody does."""


def supervise() -> None:
    """Return in a process that is to train; its parent becomes its supervisor and never returns.

    A process that no launcher started as one of several, or that is not on Linux, simply goes on. To be called
    before torch is imported: a fork must not copy threads.

    Raises:
        ConfigError: the launcher's variables contradict each other.
    """
    ranks = Ranks.from_environment()
    if ranks.size == 1 or not ON_LINUX or child.is_supervised():
        return
    hub = Hub(local=ranks.local_size == ranks.size) if ranks.rank == 0 else None
    reports, pipe = os.pipe()
    me, launcher = os.getpid(), os.getppid()
    sys.stdout.flush()
    sys.stderr.flush()
    watched = (signal.SIGCHLD, *heard(), _LAUNCHER_GONE)
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # until both know what to do with them
    training = os.fork()
    if training == 0:
        signal_at_death_of_parent(signal.SIGKILL)
        if os.getppid() != me:
            os._exit(EXIT_PEER_LOST)
        os.close(reports)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        child.attach(pipe, None if hub is None else hub.address())
        if hub is not None:
            hub.socket.close()
        return
    os.close(pipe)
    Supervisor(ranks, training, launcher, reports, hub).run()


class Supervisor:
    """Watches a training process, its launcher and the lifeline.

    Args:
        ranks: the rank of the training process.
        training: its pid.
        launcher: pid of this process's parent.
        reports: end of the pipe from which the training process's messages come.
        hub: of the lifeline; None on all ranks but the first.
    """

    def __init__(self, ranks: Ranks, training: int, launcher: int, reports: int, hub: Hub | None) -> None:
        self.ranks, self.training, self.launcher, self.reports = ranks, training, launcher, reports
        self.host = socket.gethostname()
        self.runner: Process | None = deepspeed_runner(launcher)
        self.step: int | None = None
        self.status: int | None = None
        """How the child ended: its exit code, or minus the number of a signal."""
        self.settled_at = 0.0
        self.signals: set[int] = set()
        """What a launcher or a person has sent so far."""
        self.asked_at: float | None = None
        """When the first of them that asks to end came: what follows is no surprise."""
        self.pressed_at: float | None = None
        """When the first came that ends the child at once if it comes again."""
        self.listens, self.saves = False, False
        """What the child does with signals (child.announce)."""
        self.loss: Loss | None = None
        self.deadline: float | None = None
        """When the child gets SIGKILL."""
        self.code_of_others: int | None = None
        self.wait_ends: float | None = None
        """When the child's present wait is over its limit."""
        self.complaint = ""
        self.gave_up = False
        self.memory_kills = out_of_memory_kills()
        self.selector = selectors.DefaultSelector()
        self.lifeline: Hub | Spoke | None = hub
        if hub is not None:
            hub.attach(self.selector, self)
        os.set_blocking(reports, False)
        self._unread = b""
        self.selector.register(reports, selectors.EVENT_READ, self._read_reports)
        self._receive_signals()

    def run(self) -> NoReturn:
        """Until the child has ended; leaves the process with its exit code, or one that tells of the loss."""
        code = None
        while code is None:
            for key, _ in self.selector.select(TICK_S):
                key.data()
            self._look_at_launcher()
            if self.deadline is not None and time.monotonic() > self.deadline:
                self._kill(signal.SIGKILL)
            if self.wait_ends is not None and time.monotonic() > self.wait_ends:
                self._give_up()
            code = self._exit_code()
        if self.lifeline is not None and self.loss is None:
            self.lifeline.tell("bye", code=code)
        os._exit(code)

    def lost(self, loss: Loss) -> None:
        """The run cannot go on: tell the others, and end the child."""
        if self.loss is not None:
            return
        self.loss = loss
        if self.ranks.rank == 0 and not (loss.said and loss.launcher == self._launcher_name):
            self._speak(str(loss))
        if self.lifeline is not None:
            self.lifeline.tell("lost", **as_message(loss))
        self._end_child(signal.SIGTERM if loss.orderly else signal.SIGKILL)

    def silent(self, rank: int, host: str, launcher: str) -> None:
        """The supervisor of a rank has gone without a farewell."""
        how = "its processes were killed, or its machine cannot be reached"
        loss = Loss(rank, host, self.step, how, launcher, said=False, orderly=False)
        if rank == 0 and self.ranks.rank == 1 and self.loss is None:
            self._speak(str(loss))  # in the place of rank 0
        self.lost(loss)

    def ending(self, code: int) -> None:
        """Some rank has ended by itself: it has said why, and this one should soon end as well.

        At once, where that one did not wait either (128 + a signal), or where this one cannot do anything.
        """
        if self.code_of_others is None:
            self.code_of_others = code
        stopped = self.status is None and is_stopped(self.training)
        if stopped:
            self._speak(f"rank {self.ranks.rank} on {self.host} is stopped (SIGSTOP or a debugger), and is killed")
        self._end_within(SETTLE_S if stopped or code >= 128 else FOLLOW_S)

    def _exit_code(self) -> int | None:
        """With which this process must end now; None: go on."""
        if self.status is None:
            pid, status = os.waitpid(self.training, os.WNOHANG)
            if pid == 0:
                return None
            self.status = os.waitstatus_to_exitcode(status)
            self._read_reports()
            self.settled_at = time.monotonic() + (SETTLE_S if -self.status in _AMBIGUOUS else 0)
        if self.status >= 0:
            return self.status
        if not self.listens and -self.status in {*self.signals} - {signal.SIGINT}:
            return EXIT_INTERRUPTED  # while it was still starting
        if self.code_of_others is None and (self.asked_at is not None or (self.loss is not None and self.loss.orderly)):
            return 128 - self.status
        if self.loss is not None:
            return EXIT_PEER_LOST
        if self.gave_up:
            return EXIT_USER_ERROR
        if self.code_of_others is not None:
            return self.code_of_others
        if time.monotonic() < self.settled_at:
            return None
        how = f"killed by signal {-self.status} ({_name(-self.status)})"
        if self.status == -signal.SIGKILL and out_of_memory_kills() > self.memory_kills:
            how += "; this machine has run out of memory: lower train.micro_batch_size, or start fewer ranks"
        self._lost_here(how, orderly=False, said=True)
        return 128 - self.status

    def _look_at_launcher(self) -> None:
        if self.loss is not None or self.asked_at is not None:
            return
        if os.getppid() != self.launcher:
            # The deepspeed command would call this a success. The kernel has woken both of us at this moment, but
            # it needs a tenth of a second to leave, and dies of a signal instead.
            if self.runner is not None and self.runner.is_alive():
                with contextlib.suppress(OSError):  # it has gone meanwhile, or is another user's
                    os.kill(self.runner.pid, signal.SIGKILL)
            self._lost_here(f"its launcher (pid {self.launcher}) is gone", orderly=True, said=self._speaks_here)
        elif self.runner is not None and not self.runner.is_alive():
            how = f"the deepspeed command (pid {self.runner.pid}) is gone"
            self._lost_here(how, orderly=True, said=self._speaks_here)

    def _lost_here(self, how: str, orderly: bool, said: bool) -> None:
        loss = Loss(self.ranks.rank, self.host, self.step, how, self._launcher_name, said, orderly)
        if said:
            self._speak(str(loss))
        self.lost(loss)

    def _give_up(self) -> None:
        self.wait_ends, self.gave_up = None, True
        self._speak(self.complaint)
        self._kill(signal.SIGKILL)

    def _end_child(self, number: int) -> None:
        self._kill(number)
        self._end_within(SAVE_S if self.saves else GRACE_S)

    def _end_within(self, seconds: float) -> None:
        """SIGKILL for the child after this time, or after what was set before, if that is earlier."""
        deadline = time.monotonic() + seconds
        self.deadline = deadline if self.deadline is None else min(deadline, self.deadline)

    def _kill(self, number: int) -> None:
        if self.status is None:  # not yet waited for: the number is still its own
            os.kill(self.training, number)

    def _receive_signals(self) -> None:
        """Signals wake the selector; so does the death of the launcher."""
        receiver, sender = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        self._sender = sender  # kept open
        self.selector.register(receiver, selectors.EVENT_READ, lambda: self._on_signals(receiver.recv(4096)))
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        watched = (signal.SIGCHLD, *heard(), _LAUNCHER_GONE)
        for number in watched:
            signal.signal(number, _wake)
        signal_at_death_of_parent(_LAUNCHER_GONE)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)

    def _on_signals(self, numbers: bytes) -> None:
        for number in {*numbers} & {*ASKING_TO_END}:
            self.signals.add(number)
            # A terminal and most launchers send SIGINT to the group; without handlers one of it is enough.
            if number != signal.SIGINT or self.listens:
                self._kill(number)
            if number != signal.SIGUSR1:  # only a warning
                self._asked_to_end(number)

    def _asked_to_end(self, number: int) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            self._end_within(SAVE_S if self.saves else GRACE_S)
        if number == signal.SIGHUP:  # from the kernel and from the shell, and then perhaps SIGTERM from the system
            return
        if self.pressed_at is None:
            self.pressed_at = now
        elif now - self.pressed_at >= ONE_EVENT_S:
            self._end_within(SETTLE_S)  # a second time: the child leaves at once by itself, if it can

    def _read_reports(self) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.reports, 1 << 16)
            if not data and self.reports in self.selector.get_map():  # the child has closed it
                self.selector.unregister(self.reports)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.step = message.get("step", self.step)
            self.listens, self.saves = message.get("listens", self.listens), message.get("saves", self.saves)
            if "wait_s" in message:
                seconds, self.complaint = message["wait_s"], message.get("complaint", "")
                self.wait_ends = None if seconds is None else time.monotonic() + seconds
            if "lifeline" in message and self.status is None:
                self._connect(Address(*message["lifeline"]))

    def _connect(self, hub: Address) -> None:
        try:
            self.lifeline = Spoke(hub, self.ranks.rank, self.host, self._launcher_name)
        except ConnectionRefusedError:
            self.ending(EXIT_PEER_LOST)  # it has been there, and has gone already
        except OSError as error:
            self._speak(
                f"rank {self.ranks.rank} on {self.host} cannot reach rank 0's supervisor at {hub.host}:{hub.port} "
                f"({error}); training goes on, but a rank lost on another machine is only noticed after "
                "parallel.timeout_minutes"
            )
        else:
            self.lifeline.attach(self.selector, self)

    @property
    def _launcher_name(self) -> str:
        return f"{self.host}:{self.launcher}"

    @property
    def _speaks_here(self) -> bool:
        """Whether this one speaks about what all ranks of this machine see."""
        return self.ranks.local_rank == 0

    def _speak(self, message: str) -> None:
        write_unlocked(2, f"storyteller: {message}\n")


def _wake(number: int, frame: FrameType | None) -> None:
    """Python calls no handler while waiting; having one makes it write the number to the selector's socket."""


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else signal.strsignal(number) or "unknown"
