"""What is known about a run: everything that its folder holds, and what is missing there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyteller_ds.atlas.atlas import Atlas
from storyteller_ds.atlas.saved import read_atlas
from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.read import Checkpoint, open_checkpoint, step_folders
from storyteller_ds.config.load import parse_run_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import UserError
from storyteller_ds.records import run_folder
from storyteller_ds.records.metrics import Record, metrics_lines, read_metrics
from storyteller_ds.records.samples import SampleSection, read_samples
from storyteller_ds.untrusted import read_json


@dataclass(frozen=True)
class RunRecords:
    """The records of a run, each as far as it can be read."""

    folder: Path
    name: str
    config: RunConfig | None
    saved: Mapping[str, Any]
    """config.json; empty if there is none."""
    train: list[Record]
    """Logged steps, in order, without those that were undone."""
    evals: list[Record]
    """Validations, likewise."""
    samples: list[SampleSection]
    evaluation: Mapping[str, Any] | None
    atlas: Atlas | None
    checkpoints: list[Checkpoint]
    """Those that are complete according to their names and manifests, the newest first."""
    is_being_written: bool
    missing: list[str]
    """What the report cannot show and why, one line each."""

    @property
    def step(self) -> int:
        """The last recorded step."""
        return max((record["step"] for record in (*self.train[-1:], *self.evals[-1:])), default=0)

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return max((record.get("tokens") or 0 for record in (*self.train[-1:], *self.evals[-1:])), default=0)

    @property
    def layers(self) -> list[int]:
        """The blocks that have experts, counted from 0."""
        if self.config is None:
            return []
        return [i for i in range(self.config.model.num_layers) if self.config.moe.is_moe_layer(i)]

    def last(self, name: str) -> Any:
        """The value of a key in the last record that has one; None if none has."""
        for records in (self.evals, self.train):
            for record in reversed(records):
                if record.get(name) is not None:
                    return record[name]
        return None


def read_run(folder: Path, is_over: bool = False) -> RunRecords:
    """Read everything that is there, even while the run is still going.

    Args:
        folder: the run folder.
        is_over: whether the run is known to have ended, even though its process still holds the folder.

    Raises:
        UserError: this is not a run folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder; give what --output_dir was")
    metrics, checkpoints = folder / run_folder.METRICS, _checkpoints(folder)
    if not metrics.exists() and not (folder / run_folder.CONFIG).exists() and not checkpoints:
        raise UserError(
            f"{folder} has no {run_folder.METRICS}, so no run has written there; give what --output_dir was"
        )
    missing: list[str] = []
    saved = _object(folder / run_folder.CONFIG, "the settings are", missing) or {}
    config = _config(saved, folder, missing)
    records = read_metrics(metrics)
    if cut := sum(bool(line.strip()) for line in metrics_lines(metrics)) - len(records):
        missing.append(f"{cut} line(s) of {run_folder.METRICS} are not whole records, and passed over")
    train = _valid(record for record in records if "train_loss" in record)
    evals = _valid(record for record in records if "val_loss" in record)
    if not train:
        missing.append("no step is logged yet: there are no curves")
    if lost := sum(record["train_loss"] is None for record in train):
        missing.append(f"the loss of {lost} logged step(s) is not a finite number: gaps in the curves")
    if not evals:
        missing.append("nothing is validated yet: there are no bits per byte")
    samples = read_samples(folder / run_folder.SAMPLES)
    if not samples:
        missing.append("no sample stories: train.sample_prompts is empty, or it was not their turn yet")
    evaluation = _object(folder / run_folder.EVALUATION, "the evaluation is", missing, is_needed=False)
    atlas = None
    if (folder / run_folder.ATLAS).exists():
        try:
            atlas = read_atlas(folder / run_folder.ATLAS)
        except UserError as error:
            missing.append(f"the atlas is not shown: {error}")
    if evaluation is None:
        what = (
            "evaluation"
            if atlas is not None or (config is not None and not config.moe_layers)
            else "evaluation and atlas"
        )
        missing.append(f"no {what}: storyteller report --measure {folder}")
    return RunRecords(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        saved=saved,
        train=train,
        evals=evals,
        samples=samples,
        evaluation=evaluation,
        atlas=atlas,
        checkpoints=checkpoints,
        is_being_written=not is_over and run_folder.holder(folder) is not None,
        missing=missing,
    )


def _valid(records: Any) -> list[Record]:
    """Drop steps that were undone later, or repeated after a resume."""
    kept: list[Record] = []
    for record in records:
        if not isinstance(record.get("step"), int):
            continue
        while kept and kept[-1]["step"] >= record["step"]:
            kept.pop()
        kept.append(record)
    return kept


def _object(path: Path, what: str, missing: list[str], is_needed: bool = True) -> dict[str, Any] | None:
    if not path.exists():
        if is_needed:
            missing.append(f"{what} not known: there is no {path.name}")
        return None
    try:
        value = read_json(path)
    except (UserError, OSError) as error:
        missing.append(f"{what} not shown: {error}")
        return None
    return value if isinstance(value, dict) else None


def _config(saved: Mapping[str, Any], folder: Path, missing: list[str]) -> RunConfig | None:
    if not isinstance(saved.get("run"), dict):
        return None
    try:
        return parse_run_config(saved["run"], str(folder / run_folder.CONFIG))
    except UserError as error:
        missing.append(f"the settings are not shown: {error}")
        return None


def _checkpoints(folder: Path) -> list[Checkpoint]:
    found = []
    for step in step_folders(folder / names.CHECKPOINTS):
        try:
            found.append(open_checkpoint(step))
        except UserError:
            continue  # half-written or damaged: `storyteller checkpoint list` says more
    return found
