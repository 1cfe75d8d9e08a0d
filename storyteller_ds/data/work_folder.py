"""Folders for long jobs: used by one process at a time, and continued by the next one if that process is killed.

A folder NAME is made as `NAME.work-XXXX` next to its final place and renamed at the end, so it is never seen
unfinished. The process that works in it holds a lock on a file in it, which the kernel releases when the process ends.
The next process that makes the same folder then continues with its contents.
"""

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "lock"
KEPT_DAYS = 7
"""How long the work of a killed process is kept for the next one (days)."""
_WORK = ".work-"
_LEFT = re.compile(r"[0-9a-f]{24,40}\.(work|tmp)-[0-9a-f-]+")
"""Names of work folders; older versions wrote tmp. The cache folder is the user's, and may hold anything else."""


@contextlib.contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A folder next to `target` that no other process works in, with whatever a killed process left there.

    It is removed after the block, unless it was renamed or the block raised an exception.

    Raises:
        OSError: the folder cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_forgotten(target)
    with contextlib.ExitStack() as locks:
        free = [folder for folder in sorted(target.parent.glob(f"{target.name}{_WORK}*")) if _taken(folder, locks)]
        for folder in free[1:]:
            shutil.rmtree(folder, ignore_errors=True)
        folder = free[0] if free else _new(target, locks)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def set_aside(target: Path) -> None:
    """Rename the folder at `target`, so that the next work_folder() continues with it; a file there is removed."""
    with contextlib.suppress(FileNotFoundError):  # another process has done it
        if target.is_dir():
            target.rename(_name(target))
        else:
            target.unlink()


def put_in_place(folder: Path, target: Path) -> None:
    """Give a work folder its final name.

    Raises:
        OSError: there is something at `target`, or it cannot be written.
    """
    folder.rename(target)
    (target / LOCK).unlink(missing_ok=True)


def _new(target: Path, locks: contextlib.ExitStack) -> Path:
    while True:
        folder = _name(target)
        folder.mkdir()
        with contextlib.suppress(Timeout):  # another process took it for a leftover and locked it first
            locks.enter_context(FileLock(folder / LOCK, timeout=0))
            return folder


def _name(target: Path) -> Path:
    return target.with_name(f"{target.name}{_WORK}{secrets.token_hex(4)}")


def _taken(folder: Path, locks: contextlib.ExitStack) -> bool:
    """Lock an existing folder for this process until `locks` is closed; returns whether that succeeded."""
    try:
        locks.enter_context(FileLock(folder / LOCK, timeout=0))
    except OSError:  # in use, another user's, or no folder
        return False
    return True


def _remove_forgotten(target: Path) -> None:
    """Remove work folders that are older than KEPT_DAYS and not in use."""
    oldest = time.time() - 24 * 3600 * KEPT_DAYS
    for folder in target.parent.iterdir():
        if not _LEFT.fullmatch(folder.name) or folder.name.startswith(f"{target.name}{_WORK}"):
            continue
        with contextlib.suppress(OSError), contextlib.ExitStack() as locks:
            if folder.stat().st_mtime < oldest and _taken(folder, locks):
                shutil.rmtree(folder, ignore_errors=True)
