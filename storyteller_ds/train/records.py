"""metrics.jsonl, and the bridge from the loop to Weights & Biases."""

import json
from pathlib import Path

from storyteller_ds.durable import write_atomically
from storyteller_ds.train.hooks import Hook, Record
from storyteller_ds.train.state import TrainState
from storyteller_ds.train.wandb_tracker import WandbTracker


class MetricsFile(Hook):
    """One JSON object a line, written at once. Lines beyond the step that a run resumes from are cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, state: TrainState) -> None:
        """Keep only the lines that belong to the state that training goes on from."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= state.step]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def on_train(self, record: Record) -> None:
        """Append the record."""
        self._append(record)

    def on_eval(self, record: Record) -> None:
        """Append the record."""
        self._append(record)

    def _append(self, record: Record) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class WandbHook(Hook):
    """Sends every record to Weights & Biases."""

    def __init__(self, tracker: WandbTracker) -> None:
        self.tracker = tracker

    def on_train(self, record: Record) -> None:
        """Log the record, without the gradient norm of a skipped step, which has none."""
        self.tracker.log({name: value for name, value in record.items() if value is not None})

    def on_eval(self, record: Record) -> None:
        """Log the record."""
        self.tracker.log(record)

    def on_end(self, exit_code: int) -> None:
        """Close the run."""
        self.tracker.close(exit_code)


def _step_of(line: str) -> float:
    """The step of a line; infinity for one that a kill has cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
