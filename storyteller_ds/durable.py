"""Files that are never seen half-written, and that survive a power cut."""

import os
import secrets
import shlex
import stat
import sys
from pathlib import Path
from typing import TextIO

from storyteller_ds.errors import UserError


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_flushed(path: Path, content: str | bytes) -> None:
    """Write a file and wait until it is on disk; for folders that are renamed as a whole afterwards."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    flush_to_disk(path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file of our own: write next to it, flush to disk, rename. A link in its place is replaced, too."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.unlink(missing_ok=True)  # left by a run that was killed; or a link, whose target is not ours
    write_flushed(beside, content)
    beside.replace(path)


def check_output(path: Path, option: str) -> None:
    """Check that `write_output` can write a file that the user has named, before the work starts.

    Raises:
        UserError: it cannot; names the option, what is in the way, and what to do.
    """

    def refuse(reason: str) -> UserError:
        return UserError(f"{option} {path}: {reason}")

    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise refuse(f"{error.strerror}; name another file") from None
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise refuse("a folder; name a file in it")
    if found is not None and not os.access(path, os.W_OK):
        raise refuse("may not be written; name another file")
    if _written_through(path) is None:
        folder = _target(path).parent
        if not folder.is_dir():
            raise refuse(f"the folder {folder} does not exist; make it first (mkdir -p {shlex.quote(str(folder))})")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise refuse(f"the folder {folder} may not be written; name another")


def is_replaced(path: Path) -> bool:
    """Whether `write_output` replaces this file as a whole and may be called again; if not, each call adds output."""
    return _written_through(path) is None


def write_output(path: Path, option: str, text: str) -> None:
    """Write a file that the user has named, to where a shell's `>` would.

    A FIFO, a device and our own stdout are written to and never replaced. A regular file is replaced as a whole and
    keeps its mode; a link stays, and its target is replaced.

    Raises:
        UserError: it cannot be written; names the option. An earlier file is unchanged.
    """
    try:
        stream = _written_through(path)
        if stream is None:
            _replace(_target(path), text)
        elif isinstance(stream, Path):
            stream.write_text(text, encoding="utf-8")
        else:
            print(text, end="", file=stream, flush=True)
    except OSError as error:
        raise UserError(f"{option} {path} could not be written: {error.strerror or error}") from error


def _target(path: Path) -> Path:
    """The file that a path leads to, which need not exist."""
    return Path(os.path.realpath(path))


def _written_through(path: Path) -> Path | TextIO | None:
    """What to write to if the file must not be replaced: the path, or our own stream behind it; otherwise None."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        # /dev/stdout with `> file` or `>> file` is a regular file, which the shell holds.
        if os.path.samestat(found, os.fstat(descriptor)):
            return stream
    return None if stat.S_ISREG(found.st_mode) else path


def _replace(target: Path, text: str) -> None:
    # A new name: other files in that folder are not ours.
    beside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        write_flushed(beside, text)
        if target.exists():
            beside.chmod(stat.S_IMODE(target.stat().st_mode))
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
