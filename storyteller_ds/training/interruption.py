"""Signals that ask a run to end: SIGTERM, SIGUSR1 (Slurm's warning before the time is over), SIGINT, SIGHUP.

    outside training    the run ends at once: nothing of it is lost, since it has trained nothing that is not saved.
                        Exit code 75, so that a scheduler starts a job again that it stopped while it was starting;
                        130 for SIGINT, behind which is a person
    in training         the ranks agree at the end of the step, whichever of them was signalled, save, and leave with 75
    a second SIGTERM or SIGINT    at once, with 128 + its number; the last complete checkpoint is what there is

SIGUSR1 is only a warning: the SIGTERM that follows it, when the time is over, is the first of its kind. So is the one
that follows SIGHUP, when a machine goes down. What was ignored when the process started stays ignored (nohup).

Handlers of Python run in the main thread between two of its instructions, so not while it waits in a collective. That
is why a thread listens: to it Python's C handler writes the number of each signal at once (signal.set_wakeup_fd).
"""

import contextlib
import enum
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from storyteller_ds.distributed.supervision import child
from storyteller_ds.distributed.supervision.signals import ASKING_TO_END, heard, outside_training
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import EXIT_INTERRUPTED, InterruptedAfterSave
from storyteller_ds.streams import write_unlocked

SECONDS_OF_ONE_EVENT = 2.0
"""One Ctrl-C or one end of a job reaches a rank up to three times: from terminal, launcher and supervisor."""
SECONDS_TO_UNWIND = 5.0
"""Outside training the main thread may be waiting for other ranks and not see the signal; then it is left there."""


class _Phase(enum.Enum):
    OUTSIDE = enum.auto()
    TRAINING = enum.auto()
    SAVED = enum.auto()


class Interruption:
    """Hears the signals between entering and leaving this context; then the handlers of before are put back.

    For a program that goes on after the run: a script that calls the library, a notebook. A second SIGTERM or SIGINT
    goes to the handler of before, which for SIGINT raises KeyboardInterrupt. Outside the main thread no signal is
    heard, since Python handles them there alone.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase = _Phase.OUTSIDE
        self._changing = threading.RLock()
        self._asked: list[int] = []
        """Signals heard in training."""
        self._agreed: list[str] = []
        """Those that the ranks have agreed to end for, by name."""
        self._ending_since: float | None = None
        """When the first SIGTERM or SIGINT was heard."""
        self._outside: int | None = None
        """The first signal heard outside training."""
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._in_main_thread) for number in heard()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def by_a_person(self) -> bool:
        """Whether the ranks have agreed to end for SIGINT and nothing else."""
        return self._agreed == [signal.SIGINT.name]

    @contextlib.contextmanager
    def in_training(self) -> Iterator[None]:
        """For the time of the block a signal is answered at the end of the step, by agreed()."""
        with self._changing:
            self._phase = _Phase.TRAINING
            heard = self._outside
        if heard is not None:
            raise outside_training(heard)
        try:
            yield
        finally:
            if self._phase is _Phase.TRAINING:
                self._phase = _Phase.OUTSIDE

    def agreed(self, world: World, device: torch.device) -> bool:
        """Whether any rank has been asked to end; the same answer on all ranks, which must all call.

        Costs an all-reduce of four numbers.
        """
        asked = torch.tensor([int(number in self._asked) for number in ASKING_TO_END], device=device)
        ranks = world.all_reduce_sum(asked).tolist()
        self._agreed = [number.name for number, count in zip(ASKING_TO_END, ranks, strict=True) if count]
        return bool(self._agreed)

    def after_save(self, step: int) -> InterruptedAfterSave:
        """To be raised when agreed() has said yes and the step is saved; nothing can be lost from now on."""
        self._phase = _Phase.SAVED
        names = " and ".join(self._agreed)
        error = InterruptedAfterSave(f"interrupted by {names}; saved step {step}; run again to continue")
        error.step = step
        return error

    def hear(self, number: int) -> None:
        """What a signal means at this moment."""
        now = self._clock()
        ending = number in (signal.SIGTERM, signal.SIGINT)
        if ending and self._ending_since is not None:
            if now - self._ending_since >= SECONDS_OF_ONE_EVENT:
                self._end_at_once(number)
            return
        if ending:
            self._ending_since = now
        with self._changing:
            phase = self._phase
            if phase is _Phase.OUTSIDE and self._outside is None:
                self._outside = number
        if phase is _Phase.TRAINING:
            self._asked.append(number)
            self._acknowledge(number)

    def _acknowledge(self, number: int) -> None:
        """A signal has been heard in training."""

    def _end_at_once(self, number: int) -> None:
        self._put_back()
        signal.raise_signal(number)

    def _in_main_thread(self, number: int, _: FrameType | None) -> None:
        self.hear(number)
        if self._phase is _Phase.OUTSIDE:
            self._put_back()  # one exception is enough
            raise outside_training(number)


class ProcessInterruption(Interruption):
    """For a process that is nothing but a run: it hears signals while it waits for other ranks, and ends with them.

    To be entered by the main thread.

    Args:
        say: logs that a signal has been heard in training; called from another thread.
        clock: seconds.
        leave: ends the process with an exit code, without returning.
        speaks: whether this is the rank that logs why a run ends outside training.
    """

    def __init__(
        self,
        say: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
        speaks: bool = True,
    ) -> None:
        super().__init__(clock)
        self._say, self._leave, self._speaks = say, leave, speaks
        self._leave_at: float | None = None

    def __enter__(self) -> Self:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        super().__enter__()
        self._wakeup_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        child.report_handlers()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup_fd)
        super().__exit__(kind, error, _)
        self._sender.close()
        self._listener.join()
        self._receiver.close()

    def _acknowledge(self, number: int) -> None:
        name = signal.Signals(number).name
        self._say(f"{name}: finishing the step, then saving; a second signal ends the run at once")

    def _end_at_once(self, number: int) -> None:
        if self._phase is _Phase.SAVED:
            self._leave(EXIT_INTERRUPTED)
            return
        again = "run again to continue from the last checkpoint, if there is one"
        _shout(f"a second {signal.Signals(number).name}: ended at once; {again}")
        self._leave(128 + number)

    def _listen(self) -> None:
        while True:
            self._receiver.settimeout(None if self._leave_at is None else max(0.001, self._leave_at - self._clock()))
            try:
                numbers = self._receiver.recv(64)
            except TimeoutError:
                if self._outside is not None:
                    error = outside_training(self._outside)
                    if self._speaks:
                        _shout(str(error))
                    self._leave(error.exit_code)
                return
            if not numbers:
                return
            for number in numbers:
                if number in ASKING_TO_END:
                    self.hear(number)
                    if self._outside is not None and self._leave_at is None:
                        self._leave_at = self._clock() + SECONDS_TO_UNWIND

    def _in_main_thread(self, number: int, _: FrameType | None) -> None:
        if self._phase is _Phase.OUTSIDE:
            for mine in self._handlers:  # one exception is enough; the listener counts on
                signal.signal(mine, _only_heard)
            raise outside_training(number)


def _only_heard(number: int, frame: FrameType | None) -> None:
    """A handler must be there for the listener to be woken."""


def _shout(message: str) -> None:
    """To stderr without any lock, which the main thread might hold."""
    write_unlocked(2, f"storyteller: {message}\n")
