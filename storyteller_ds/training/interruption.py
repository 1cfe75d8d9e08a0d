"""Signals that ask a run to end: SIGTERM, SIGUSR1 (Slurm's warning before the time limit), SIGINT, SIGHUP.

    outside training    the run ends at once: all that was trained is saved. Exit code 75, so that a scheduler restarts
                        a job that it stopped during startup; 130 for SIGINT (Ctrl-C)
    in training         at the end of the step the ranks agree, whichever of them got the signal, save, and exit with 75
    a second SIGTERM or SIGINT    the run ends at once, with 128 + its number, without saving

SIGUSR1 is only a warning: a SIGTERM after it, at the time limit, counts as the first. So does a SIGTERM after SIGHUP,
when a machine shuts down. A signal that was ignored when the process started stays ignored (nohup).

Python runs signal handlers in the main thread between two instructions, so not while it waits in a collective.
Therefore another thread receives the number of each signal from Python's C handler (signal.set_wakeup_fd).
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
from storyteller_ds.distributed.supervision.signals import ASKING_TO_END, outside_training, signals_to_handle
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import EXIT_INTERRUPTED, InterruptedAfterSave
from storyteller_ds.streams import print_unlocked

SECONDS_OF_ONE_EVENT = 2.0
"""A signal within this time of the first is the same one: a rank gets it from terminal, launcher and supervisor."""
SECONDS_TO_UNWIND = 5.0
"""Time for the main thread to end by itself outside training; waiting for other ranks, it may not get the signal."""


class _Phase(enum.Enum):
    OUTSIDE = enum.auto()
    TRAINING = enum.auto()
    SAVED = enum.auto()


class Interruption:
    """Handles the signals while in this context, then restores the previous handlers.

    For a program that continues after the run, such as a script that calls the library or a notebook. A second SIGTERM
    or SIGINT goes to the previous handler, which for SIGINT raises KeyboardInterrupt. Outside the main thread, signals
    are not handled: Python does not allow it.

    Args:
        clock: seconds.
        log: logs that a signal has been received in training; called from a signal handler or another thread.
    """

    ends_process = False
    """Whether the process does nothing but this run."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, log: Callable[[str], object] = lambda _: None
    ) -> None:
        self._clock, self._log = clock, log
        self._phase = _Phase.OUTSIDE
        self._changing = threading.RLock()
        self._asked: list[int] = []
        """Signals received in training."""
        self._agreed: list[str] = []
        """Names of the signals that the ranks have agreed to end for."""
        self._ending_since: float | None = None
        """When the first SIGTERM or SIGINT was received."""
        self._outside: int | None = None
        """The first signal received outside training."""
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._in_main_thread) for number in signals_to_handle()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def by_ctrl_c(self) -> bool:
        """Whether the ranks have agreed to end for SIGINT and nothing else."""
        return self._agreed == [signal.SIGINT.name]

    @contextlib.contextmanager
    def in_training(self) -> Iterator[None]:
        """Within the block a signal is acted on at the end of the step, by agreed()."""
        with self._changing:
            self._phase = _Phase.TRAINING
            earlier = self._outside
        if earlier is not None:
            raise outside_training(earlier)
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
        """To be raised when agreed() was true and the step is saved; from then on nothing can be lost."""
        self._phase = _Phase.SAVED
        names = " and ".join(self._agreed)
        error = InterruptedAfterSave(f"interrupted by {names}; saved step {step}; run again to continue")
        error.step = step
        return error

    def receive(self, number: int) -> None:
        """Act on a signal as the phase of the run requires."""
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
            name = signal.Signals(number).name
            self._log(f"{name}: finishing the step, then saving; a second signal ends the run at once")

    def _end_at_once(self, number: int) -> None:
        self._put_back()
        signal.raise_signal(number)

    def _in_main_thread(self, number: int, _: FrameType | None) -> None:
        self.receive(number)
        if self._phase is _Phase.OUTSIDE:
            self._put_back()  # one exception is enough
            raise outside_training(number)


class ProcessInterruption(Interruption):
    """For the process of a command: signals are also received while it waits for other ranks, and end the process.

    Must be entered by the main thread.

    Args:
        log: logs that a signal has been received in training; called from another thread.
        clock: seconds.
        leave: ends the process with an exit code, without returning.
        reports: whether this rank prints why a run ends outside training.
    """

    ends_process = True

    def __init__(
        self,
        log: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
        reports: bool = True,
    ) -> None:
        super().__init__(clock, log)
        self._leave, self._reports = leave, reports
        self._unwinding = threading.Timer(SECONDS_TO_UNWIND, self._leave_outside)
        self._unwinding.daemon = True

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
        self._unwinding.cancel()
        if self._unwinding.ident is not None:  # it was started
            self._unwinding.join()
        self._receiver.close()

    def _end_at_once(self, number: int) -> None:
        if self._phase is _Phase.SAVED:
            self._leave(EXIT_INTERRUPTED)
            return
        again = "run again to continue from the last checkpoint, if there is one"
        print_unlocked(f"a second {signal.Signals(number).name}: ended at once; {again}")
        self._leave(128 + number)

    def _listen(self) -> None:
        while numbers := self._receiver.recv(64):
            for number in numbers:
                if number in ASKING_TO_END:
                    self.receive(number)
            if self._outside is not None and self._unwinding.ident is None:
                self._unwinding.start()

    def _leave_outside(self) -> None:
        assert self._outside is not None
        error = outside_training(self._outside)
        if self._reports:
            print_unlocked(str(error))
        self._leave(error.exit_code)

    def _in_main_thread(self, number: int, _: FrameType | None) -> None:
        if self._phase is _Phase.OUTSIDE:
            for mine in self._handlers:  # one exception is enough; the listener keeps counting
                signal.signal(mine, _only_received)
            raise outside_training(number)


def _only_received(number: int, frame: FrameType | None) -> None:
    """Do nothing; without a handler, Python would not pass the signal on to the thread."""
