"""What goes into a Weights & Biases run, each item in wandb's own form."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from storyteller_ds.checkpoint.names import WEIGHTS
from storyteller_ds.checkpoint.read import Checkpoint
from storyteller_ds.records.metrics import attempt_of
from storyteller_ds.training.callbacks.alerts import Alert
from storyteller_ds.training.callbacks.callback import Record, Sample

HISTOGRAM = "expert_load_histogram"
"""A bar for each expert, as high as its load."""
SAMPLES = "samples"


class SampleRows(NamedTuple):
    """Rows of the table of samples."""

    attempt: int
    step: int
    samples: Sequence[Sample]


class Items:
    """The items of one wandb run.

    Args:
        wandb: the module.
        run: an open run of it.
    """

    def __init__(self, wandb: Any, run: Any) -> None:
        self._wandb, self._run = wandb, run
        # Each time it is logged, only the new rows are sent.
        self._samples = wandb.Table(columns=["step", "prompt", "story"], log_mode="INCREMENTAL")

    def record(self, record: Record) -> None:
        """Log one row; the records of one step share a row."""
        row: dict[str, object] = {name: record[name] for name in record if name != "step"}
        if load := record.get("expert_load"):
            row[HISTOGRAM] = self._wandb.Histogram(np_histogram=(load, list(range(len(load) + 1))))
        # Weights & Biases drops a row whose step is before the last one's, as after a rollback.
        self._run.log(row, step=attempt_of(record))

    def samples(self, rows: SampleRows) -> None:
        """Add rows to the table of samples."""
        for prompt, continuation in rows.samples:
            self._samples.add_data(rows.step, prompt, continuation)
        self._run.log({SAMPLES: self._samples}, step=rows.attempt)

    def alert(self, alert: Alert) -> None:
        """Send a message; users who asked Weights & Biases for alerts get it by email or Slack."""
        self._run.alert(title=alert.title, text=alert.text, level=alert.level)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Upload the files of a step that generation needs, as artifact model-RUN_ID with its scores as metadata."""
        manifest = checkpoint.manifest
        metadata = {"step": manifest.step, "val_bpb": manifest.val_bpb}
        artifact = self._wandb.Artifact(f"model-{self._run.id}", "model", metadata=metadata)
        for name in ("manifest.json", *(name for name, _ in checkpoint.files(WEIGHTS))):
            artifact.add_file(str(checkpoint.folder / name), name=name)
        self._run.log_artifact(artifact, aliases=["best", f"step-{manifest.step}"])
