"""The finished runs of a comparison, in a file that can be moved to another machine without their folders."""

import dataclasses
import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyteller_ds.config.run import RunConfig
from storyteller_ds.durable import write_atomically
from storyteller_ds.records.run_folder import written_record
from storyteller_ds.untrusted import read_json


@dataclass(frozen=True)
class Run:
    """One run of a recipe."""

    lr: float
    seed: int
    bpb: float
    """Bits per byte at the end, on the whole validation text."""
    steps: int
    tokens: int
    """Tokens trained on."""


class FinishedRuns:
    """The runs in a file, each with a digest of its run config; several threads may use it.

    Args:
        file: JSON; need not exist.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._known: dict[str, Any] = read_json(file) if file.exists() else {}

    def find(self, name: str, run: RunConfig) -> Run | None:
        """The run of this name, if it had this config."""
        known = self._known.get(name)
        return Run(**known["run"]) if known and known["config"] == _digest(run) else None

    def add(self, name: str, run: RunConfig, done: Run) -> None:
        """Add a run; replaces one with the same name and another config.

        Raises:
            UserError: the file cannot be written.
        """
        with self._lock, written_record(self._file):
            self._known[name] = {"config": _digest(run), "run": dataclasses.asdict(done)}
            write_atomically(self._file, json.dumps(dict(sorted(self._known.items())), indent=2) + "\n")


def _digest(run: RunConfig) -> str:
    """Digest of all non-default settings, so that a setting added later changes nothing."""
    return hashlib.sha256(
        json.dumps(run.model_dump(mode="json", exclude_defaults=True), sort_keys=True).encode()
    ).hexdigest()
