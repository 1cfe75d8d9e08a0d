"""What listens to the training loop: records, progress, samples, checkpoints."""

from collections.abc import Mapping
from typing import Any

from storyteller_ds.checkpoint.train_state import TrainState

Record = Mapping[str, Any]
"""One line of metrics.jsonl."""


class Hook:
    """Told of everything in order, on every rank. All methods do nothing unless overridden."""

    def on_start(self, state: TrainState) -> None:
        """Before the first step of this process."""

    def on_train(self, record: Record) -> None:
        """After a logged optimizer step."""

    def on_eval(self, record: Record) -> None:
        """After a validation."""

    def on_busy(self, what: str, last: bool) -> None:
        """Before a step, and before anything else that takes its time; `last`: the last step is done."""

    def busy_with(self, state: TrainState, last: bool) -> str | None:
        """What on_step_end is about to do, for on_busy of all hooks; None if it takes no time."""
        return None

    def on_step_end(self, state: TrainState, last: bool) -> None:
        """After every optimizer step and its validation; `last`: the run ends here."""

    def on_interrupt(self, state: TrainState) -> None:
        """After the last of these steps, when a signal ends the run early: what must not be lost is saved now."""

    def on_end(self, exit_code: int) -> None:
        """When the loop has ended, also by an exception."""
