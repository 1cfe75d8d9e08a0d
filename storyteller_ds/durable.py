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


def write_atomically(path: Path, text: str) -> None:
    """Replace a file: written beside it, flushed to disk, renamed."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    flush_to_disk(beside)
    beside.replace(path)
