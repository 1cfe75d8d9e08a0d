"""The results of a run in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyteller_ds.checkpoint.names import CHECKPOINTS
from storyteller_ds.checkpoint.read import step_folders
from storyteller_ds.records.metrics import read_metrics
from storyteller_ds.records.run_folder import METRICS


@dataclass(frozen=True)
class TrainedRun:
    """The records and the checkpoint of a run, read on access."""

    folder: Path
    """The run folder."""
    step: int
    """Optimizer steps done."""
    interrupted: bool = False
    """Whether the user ended it early; repeating the call continues it."""
    finished: Path | None = None
    """The step folder to continue from, if its run was already finished."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, oldest first; the last one is the final validation.

        Can be read while the run goes on: a partial line is skipped. If this run had nothing to do because the run to
        continue was already finished, these are the records of that run.
        """
        path = self.folder / METRICS
        if self.finished is not None and not path.exists():
            path = self.finished.parent.parent / METRICS
        return read_metrics(path)

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the newest step; None if none was saved."""
        return self.finished or next(iter(step_folders(self.folder / CHECKPOINTS)), None)
