"""Report when other programs slow a run down."""

import statistics
from collections import deque
from collections.abc import Callable

from storyteller_kernels.cpu_sharing import TAKEN, Neighbors

from storyteller_ds.training.callbacks.callback import Callback, Record

SLOW = 1.5
"""A step that takes more than this many times the usual time is slow."""
IN_A_ROW = 5
"""This many slow steps in a row are reported, and this many others end the report."""
USUAL_STEPS = 50
"""The usual time is the median of this many of the latest steps with free cores."""


class SlowSteps(Callback):
    """Logs a line when steps become slow while other programs use the cores, and again only after they recovered.

    Args:
        neighbors: what the other programs use.
        log: logs a line.
    """

    def __init__(self, neighbors: Neighbors, log: Callable[[str], None]) -> None:
        self.neighbors, self.log = neighbors, log
        self._usual_s: deque[float] = deque(maxlen=USUAL_STEPS)
        self._in_a_row = 0
        """Consecutive steps that differ from what was reported: slow ones before a report, others after it."""
        self._reported = False

    def on_train(self, record: Record) -> None:
        """Compare the step's time with that of steps for which the cores were free."""
        seconds, taken = record["step_time_s"], self.neighbors.cores_taken
        if taken < TAKEN:
            self._usual_s.append(seconds)
        usual = statistics.median(self._usual_s) if len(self._usual_s) >= IN_A_ROW else None
        slow = taken >= TAKEN and (usual is None or seconds > SLOW * usual)
        self._in_a_row = self._in_a_row + 1 if slow != self._reported else 0
        if self._in_a_row < IN_A_ROW:
            return
        self._reported, self._in_a_row = slow, 0
        if slow:
            times = "" if usual is None else f", and a step takes {seconds / usual:.1f} times as long"
            self.log(
                f"other programs use {taken:.1f} of this machine's cores{times}; the numbers stay the same, but "
                "training is faster when they have ended"
            )
