"""The records of a run, for Weights & Biases."""

from storyteller_ds.training.callbacks.callback import Callback, Record
from storyteller_ds.training.callbacks.metrics_file import attempt_of
from storyteller_ds.training.wandb_tracker import WandbTracker


class WandbRecords(Callback):
    """Sends every record to Weights & Biases, whose step counts the steps tried, undone ones included."""

    def __init__(self, tracker: WandbTracker) -> None:
        self.tracker = tracker

    def on_train(self, record: Record) -> None:
        """Log the record, without what a skipped step does not have."""
        self._log({name: value for name, value in record.items() if value is not None})

    def on_eval(self, record: Record) -> None:
        """Log the record."""
        self._log(record)

    def on_end(self, exit_code: int) -> None:
        """Close the run."""
        self.tracker.close(exit_code)

    def _log(self, record: Record) -> None:
        # Weights & Biases drops a row whose step lies before the last one's, as after a rollback.
        self.tracker.log({**record, "step": attempt_of(record)})
