"""What happens besides the optimizer steps: the events of a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.engines.base import StepResult
from storyteller_ds.records.metrics import Record as Record

if TYPE_CHECKING:
    from storyteller_ds.training.trainer import Trainer


class Sample(NamedTuple):
    """A story told during training."""

    prompt: str
    continuation: str
    """Ends with an ellipsis if it was cut off before its end."""


class Callback:
    """Gets every event of a run, on every rank, in the order in which Trainer lists the callbacks.

    All methods do nothing unless overridden. An exception ends the run on this rank; on_end is still called. What only
    one rank should do is done if `self.trainer.world.is_main`.
    """

    trainer: "Trainer"
    """Set before on_start; its run config, ranks, engine and output folder may be read."""

    def on_start(self, state: TrainState) -> None:
        """Before the first step of this process."""

    def on_result(self, state: TrainState, result: StepResult) -> TrainState:
        """After every optimizer step, before its record. Returns the state to continue with, the same on every rank."""
        return state

    def on_train(self, record: Record) -> None:
        """After a logged optimizer step."""

    def recover(self, state: TrainState) -> TrainState:
        """After the record of a step. Returns the state to continue with: another one if the run was rolled back."""
        return state

    def on_eval(self, record: Record) -> None:
        """After a validation."""

    def on_samples(self, state: TrainState, samples: Sequence[Sample]) -> None:
        """After stories have been generated with the weights of this step."""

    def on_busy(self, what: str, last: bool) -> None:
        """Before a step, and before anything else that takes time; `last`: the last step is done."""

    def busy_with(self, state: TrainState, last: bool) -> str | None:
        """What on_step_end is about to do, for on_busy of all callbacks; None if it takes no time."""
        return None

    def acts_after(self, state: TrainState) -> bool:
        """Whether on_step_end has something to do after this step.

        Until it does, the run does not wait for a GPU, and the events of several steps come together; so the default is
        True for a callback that overrides on_step_end.
        """
        return type(self).on_step_end is not Callback.on_step_end

    def on_step_end(self, state: TrainState, last: bool) -> None:
        """After every optimizer step and its validation; `last`: the run ends here."""

    def on_interrupt(self, state: TrainState) -> None:
        """After the last of these steps, when a signal ends the run early: save what must not be lost."""

    def on_end(self, exit_code: int) -> None:
        """When the loop has ended, even by an exception, and even if on_start was not reached."""
