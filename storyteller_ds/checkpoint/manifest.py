"""manifest.json: describes a checkpoint, with the size and sha256 of every other file in it."""

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
    """In hex; not validated here, since a bogus digest fails the comparison with the file."""


class Topology(_Strict, extra="allow"):
    """The ranks that wrote it, and how the model was distributed over them: ep_size, zero_stage and so on."""

    world_size: int = Field(ge=1)
    """Number of ranks."""


class Manifest(_Strict):
    """The contents of manifest.json, except its seal."""

    format: int
    """Version of the format."""
    step: int = Field(ge=0, le=MAX_STEP)
    """Optimizer steps done when it was written."""
    dataset_fingerprint: str = ""
    """Identifies the corpus that it was trained on."""
    config_fingerprint: str | None = None
    """sha256 of the run config."""
    topology: Topology
    """What wrote it."""
    val_bpb: float | None = None
    """Validation score at exactly this step (bits per byte); None if there was no validation."""
    val_tokens: int | None = None
    """Number of tokens of the validation text that val_bpb covers; None: not known."""
    files: dict[str, FileEntry]
    """By name, except the manifest."""


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a file, as recorded in the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(bytes=os.fstat(file.fileno()).st_size, sha256=digest)
