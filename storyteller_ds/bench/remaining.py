"""How long the remaining runs of a comparison may take."""

import statistics
import threading
from collections.abc import Mapping

from storyteller_ds.console import duration


class Remaining:
    """Estimates the time left from how much longer than planned the runs so far took; several threads may use it.

    Args:
        planned_s: training time of a run of each recipe that has the machine to itself.
        runs: number of runs of each recipe.
        at_once: number of runs that share the machine.
    """

    def __init__(self, planned_s: Mapping[str, float], runs: Mapping[str, int], at_once: int) -> None:
        self._planned_s, self._runs, self._at_once = planned_s, dict(runs), at_once
        self._in_all, self._lock = sum(runs.values()), threading.Lock()
        self._slower: list[float] = []

    def finish(self, recipe: str, took_s: float | None) -> str:
        """Count a finished run.

        Args:
            recipe: its name.
            took_s: its time; None: it was already finished before.

        Returns:
            How many runs are finished and how long the rest may take, for people.
        """
        with self._lock:
            self._runs[recipe] -= 1
            if took_s is not None:
                self._slower.append(took_s / self._planned_s[recipe])
            over = self._in_all - sum(self._runs.values())
            alone_s = sum(runs * self._planned_s[name] for name, runs in self._runs.items())
            slower = statistics.mean(self._slower) if self._slower else self._at_once
        return f"{over}/{self._in_all}, {duration(alone_s * slower / self._at_once)} left"
