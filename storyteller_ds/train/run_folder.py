"""The output folder of a run: who may write to it, and what lies where."""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from storyteller_ds.durable import write_atomically
from storyteller_ds.errors import UserError

METRICS = "metrics.jsonl"
SAMPLES = "samples.md"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CHECKPOINTS = "checkpoints"
WANDB_RUN_ID = "wandb_run_id"
"""Key in config.json: the run to go on with after a resume."""
_LOCK = ".lock"
_RECORDS = (METRICS, SAMPLES, CONFIG, TOKENIZER, CHECKPOINTS)


class RunFolder:
    """One run's folder, held exclusively by the process that made this object until it ends.

    Raises:
        UserError: another run is writing here, or the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (path / _LOCK).open("w")
        except OSError as error:
            raise UserError(
                f"output folder {path} cannot be used: {error.strerror}; choose another --output_dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {path}; wait for it, or choose another --output_dir") from None

    def set_aside(self) -> Path | None:
        """Move the records of an earlier run into previous-N, so that a new one starts clean; nothing is deleted."""
        present = [name for name in _RECORDS if (self.path / name).exists()]
        if not present:
            return None
        taken = [path.name.removeprefix("previous-") for path in self.path.glob("previous-*")]
        number = 1 + max((int(name) for name in taken if name.isdigit()), default=0)
        aside = self.path / f"previous-{number}"
        aside.mkdir()
        for name in present:
            (self.path / name).rename(aside / name)
        return aside

    def wandb_run_id(self) -> str | None:
        """The Weights & Biases run that this folder's records went to so far, if any."""
        try:
            value = json.loads((self.path / CONFIG).read_text(encoding="utf-8")).get(WANDB_RUN_ID)
        except (OSError, ValueError, AttributeError):
            return None
        return value if isinstance(value, str) else None

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file so that it is never seen half-written."""
        write_atomically(self.path / name, json.dumps(value, indent=2) + "\n")
