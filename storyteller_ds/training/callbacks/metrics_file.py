"""metrics.jsonl: the records of a run."""

import json
from pathlib import Path

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.durable import write_atomically
from storyteller_ds.records.metrics import Record, attempt_of_line, finite, metrics_lines
from storyteller_ds.records.run_folder import written_record
from storyteller_ds.training.callbacks.callback import Callback


class MetricsFile(Callback):
    """Writes one JSON object per line, immediately. Lines beyond the step that a run resumes from are removed.

    A run that went back to a checkpoint keeps the lines of the undone steps, and the same step may occur again.
    `undone_steps` distinguishes them: it counts all steps undone before the line was written, so that
    `step + undone_steps` orders the lines, and the last line of a step is the valid one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, state: TrainState) -> None:
        """Keep only the lines that belong to the state that training continues from."""
        with written_record(self.path):
            kept = [line for line in metrics_lines(self.path) if attempt_of_line(line) <= state.attempts]
            write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def on_train(self, record: Record) -> None:
        """Append the record."""
        self._append(record)

    def on_eval(self, record: Record) -> None:
        """Append the record."""
        self._append(record)

    def _append(self, record: Record) -> None:
        with written_record(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")
