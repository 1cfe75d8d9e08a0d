"""manifest.json: what a checkpoint is, and size and sha256 of every other file in it."""

import hashlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MAX_STEP = 10**15


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)


class FileEntry(_Strict, extra="forbid"):
    """One file of the checkpoint."""

    bytes: int = Field(ge=0, lt=2**63)
    """Size (bytes)."""
    sha256: str
    """In hex. A hostile digest is found by comparing it with the file."""


class Topology(_Strict, extra="allow"):
    """The ranks that wrote it, and how the model was spread over them: ep_size, zero_stage and the like."""

    world_size: int = Field(ge=1)
    """Number of ranks."""


class Manifest(_Strict):
    """The content of manifest.json, its seal aside."""

    format: int
    """Version of the format."""
    step: int = Field(ge=0, le=MAX_STEP)
    """Optimizer steps done when it was written."""
    dataset_fingerprint: str = ""
    """Which corpus it was trained on."""
    config_fingerprint: str | None = None
    """sha256 of the run config."""
    topology: Topology
    """What wrote it."""
    val_bpb: float | None = None
    """Validation score of this very step (bits per byte); None if it was not validated then."""
    val_tokens: int | None = None
    """How many tokens of the validation text val_bpb is the score of; None: not known."""
    files: dict[str, FileEntry]
    """By name, the manifest aside."""


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a file, as they stand in the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(bytes=os.fstat(file.fileno()).st_size, sha256=digest)
