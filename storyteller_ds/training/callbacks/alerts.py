"""What someone who is not watching should hear about a run."""

from typing import NamedTuple

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.errors import EXIT_DONE, EXIT_INTERRUPTED
from storyteller_ds.training.callbacks.callback import Record


class Alert(NamedTuple):
    """A message with level INFO, WARN or ERROR."""

    title: str
    text: str
    level: str


class Alerts:
    """Finds what is new in a record since the previous one, so that everything is reported once."""

    def __init__(self) -> None:
        self._bad_steps = self._loss_spikes = self._idle_experts = 0

    def start(self, state: TrainState) -> None:
        """Treat everything up to this state as already reported."""
        self._bad_steps, self._loss_spikes = state.bad_steps, state.loss_spikes

    def of(self, record: Record) -> list[Alert]:
        """The alerts of a train record: non-finite steps, loss spikes, experts without tokens."""
        at = f"at or before step {record['step']}"
        found = []
        if (bad := record.get("bad_steps", 0)) > self._bad_steps:
            text = f"{bad - self._bad_steps} step(s) skipped {at}, {bad} so far"
            found.append(Alert("loss or gradient not finite", text, "ERROR"))
        if (spikes := record.get("loss_spikes", 0)) > self._loss_spikes:
            found.append(Alert("loss spike", f"{spikes - self._loss_spikes} {at}, {spikes} so far", "WARN"))
        if (idle := record.get("idle_experts", self._idle_experts)) > self._idle_experts:
            found.append(Alert("dead experts", f"{idle} expert(s) without a token for a while, {at}", "WARN"))
        self._bad_steps, self._loss_spikes = max(bad, self._bad_steps), max(spikes, self._loss_spikes)
        self._idle_experts = idle
        return found


def end_of_run(exit_code: int) -> Alert:
    """The alert for the end of a run with this exit code."""
    if exit_code == EXIT_DONE:
        return Alert("run finished", "training has ended as configured", "INFO")
    if exit_code == EXIT_INTERRUPTED:
        return Alert("run interrupted", "it was saved; the same command goes on", "WARN")
    return Alert("run stopped", f"training has stopped by itself or by an error (exit code {exit_code})", "ERROR")
