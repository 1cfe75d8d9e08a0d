"""metrics.jsonl: the records of a run."""

import json
import math
from pathlib import Path
from typing import Any

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.durable import write_atomically
from storyteller_ds.training.callbacks.callback import Callback, Record
from storyteller_ds.training.run_folder import written_record


class MetricsFile(Callback):
    """One JSON object a line, written at once. Lines beyond the step that a run resumes from are cut.

    A run that went back to a checkpoint leaves the lines of the undone steps, and the same step may come again.
    `undone_steps` distinguishes them: it counts all steps undone before the line was written, so that
    `step + undone_steps` orders the lines, and of one step the last line is the valid one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, state: TrainState) -> None:
        """Keep only the lines that belong to the state that training goes on from."""
        with written_record(self.path):
            kept = [line for line in _lines(self.path) if _attempt_of(line) <= state.attempts]
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


def read_metrics(path: Path, attempts: int | None = None) -> list[dict[str, Any]]:
    """The records of a run, oldest first, also while it writes them; none where there is no file.

    Lines that are no JSON object are passed over: the last one, where a kill has cut it short.

    Args:
        path: metrics.jsonl.
        attempts: only up to so many steps tried; None: all.
    """
    lines = [line for line in _lines(path) if attempts is None or _attempt_of(line) <= attempts]
    return [record for line in lines if (record := _object(line)) is not None]


def finite(value: Any) -> Any:
    """A value with None for every number that is not finite, since JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def attempt_of(record: Record) -> int:
    """How many steps had been tried when a record was written, undone ones included; never goes back."""
    step: int = record["step"]
    return step + int(record.get("undone_steps", 0))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []


def _object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _attempt_of(line: str) -> float:
    """The attempt of a line; infinity for one that a kill has cut short."""
    try:
        return float(attempt_of(json.loads(line)))
    except (ValueError, KeyError, TypeError):
        return float("inf")
