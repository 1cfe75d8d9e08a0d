"""How long a run has trained, and how long it will continue."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.training import TrainConfig
from storyteller_ds.training.callbacks.callback import Record

RECENT_STEPS = 30
"""The time of a step is the median of this many, so that compilation and brief load on the machine do not count."""


class Pace:
    """Elapsed and remaining time of one process.

    Args:
        limits: train.max_steps and train.max_minutes; whichever is reached first ends the run.
        clock: seconds.
    """

    def __init__(self, limits: TrainConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._began, self._trained_before_s = clock(), 0.0
        self._step_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._ends_at: float | None = None

    def start(self, state: TrainState) -> None:
        """Training begins in this process."""
        self._began, self._trained_before_s = self._clock(), state.elapsed_s

    def look(self, record: Record) -> None:
        """Take the record of a step that is done."""
        self._step_s.append(record["step_time_s"])
        self._ends_at = self._clock() + (self._limits.max_steps - record["step"]) * statistics.median(self._step_s)
        if self._limits.max_minutes is not None:
            limit = self._began + 60 * self._limits.max_minutes - self._trained_before_s
            self._ends_at = min(self._ends_at, limit)

    def finish(self) -> None:
        """The last step is done; the remaining time is not known."""
        self._ends_at = None

    def __str__(self) -> str:
        now = self._clock()
        elapsed = f"elapsed {_in_words(now - self._began)}"
        return elapsed if self._ends_at is None else f"{elapsed}, left {_in_words(self._ends_at - now)}"


def _in_words(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
