"""Keep this rank's supervisor informed of the step."""

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.distributed.supervision.child import report_step
from storyteller_ds.training.callbacks.callback import Callback


class StepReport(Callback):
    """On every rank; does nothing without a supervisor."""

    def on_start(self, state: TrainState) -> None:
        """The step to continue from."""
        report_step(state.step)

    def acts_after(self, state: TrainState) -> bool:
        """Never: the report can wait."""
        return False

    def on_step_end(self, state: TrainState, last: bool) -> None:
        """The step just done."""
        report_step(state.step)
