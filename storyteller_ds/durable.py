"""Files that are never seen half-written, and that survive a power cut."""

import os
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_flushed(path: Path, text: str) -> None:
    """Write a file and wait until it is on disk; for folders that are renamed as a whole afterwards."""
    path.write_text(text, encoding="utf-8")
    flush_to_disk(path)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file: written beside it, flushed to disk, renamed."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.unlink(missing_ok=True)  # left by a run that was killed; or a link, and what it leads to is not ours
    write_flushed(beside, text)
    beside.replace(path)
