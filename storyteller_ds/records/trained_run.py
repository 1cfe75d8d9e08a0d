"""What a run has left in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyteller_ds.checkpoint.names import CHECKPOINTS
from storyteller_ds.checkpoint.read import step_folders
from storyteller_ds.records.metrics import read_metrics
from storyteller_ds.records.run_folder import METRICS


@dataclass(frozen=True)
class TrainedRun:
    """The records and the checkpoint of a run, read when they are asked for."""

    folder: Path
    """The run folder."""
    step: int
    """Optimizer steps done."""
    interrupted: bool = False
    """Whether a person has ended it early; the same call again continues it."""
    finished: Path | None = None
    """The step folder that was to be continued, where its run was over already."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, oldest first; the last one is the final validation. Also while the run goes on:
        a line that is only half there is passed over.

        Those of the run that was over already, where this one had nothing to do.
        """
        path = self.folder / METRICS
        if self.finished is not None and not path.exists():
            path = self.finished.parent.parent / METRICS
        return read_metrics(path)

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the newest step; None if none was saved."""
        return self.finished or next(iter(step_folders(self.folder / CHECKPOINTS)), None)
