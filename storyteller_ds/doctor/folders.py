"""Folders that a run writes to: its own, the cache, and the one in which DeepSpeed compiles."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from storyteller_ds.checkpoint.read import step_folders
from storyteller_ds.data.cache import cache_folder
from storyteller_ds.doctor.finding import Check, Finding, error, warning
from storyteller_ds.doctor.machine_facts import existing, file_in_the_way
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.records.run_folder import CHECKPOINTS, holder

_FEW_FILES = 10_000
"""Free inodes: a run with a hundred checkpoints on eight ranks has two thousand files."""
_OLD_LOCK_S = 600
"""A lock of this age that no process here holds does not belong to a build on another machine either (seconds)."""
_LITTLE_CACHE = 1 << 30
"""Free space that prepared tokens and compiled operations should have (bytes)."""


def output_folder(subject: Subject) -> Iterator[Finding]:
    """The run's folder must be writable or possible to create, and no other run may hold it."""
    folder = subject.output_dir
    nearest = existing(folder)
    if (file := file_in_the_way(folder)) is not None:
        yield error(f"{file} is not a folder", "choose another --output_dir")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield error(f"{nearest} may not be written, and {folder} is to be there", "choose another --output_dir")
    elif (by := holder(folder)) is not None:
        yield error(f"another run is writing to {folder}{by}", "wait for it, or choose another --output_dir")


def few_inodes(subject: Subject) -> Iterator[Finding]:
    """A disk may have no room for more files although it has free bytes."""
    for folder in (subject.output_dir, cache_folder(subject.run.data.cache_dir)):
        free = subject.machine.free_files(folder)
        if free is not None and free < _FEW_FILES:
            yield warning(
                f"the file system of {folder} has room for {free:,} more files (inodes)",
                "remove files there (df -i), or choose another disk",
            )
            return


def cache(subject: Subject) -> Iterator[Finding]:
    """Prepared tokens and compiled operations need a writable folder."""
    folder = cache_folder(subject.run.data.cache_dir)
    fix = "set data.cache_dir or STORYTELLER_CACHE to a folder that can be written"
    nearest = existing(folder)
    if (file := file_in_the_way(folder)) is not None:
        yield error(f"the cache {file} is not a folder", fix)
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield error(f"the cache {folder} cannot be written ({nearest} is not this user's)", fix)
    if (free := subject.machine.free_bytes(folder)) < _LITTLE_CACHE:
        yield warning(
            f"the disk of the cache {folder} has {free / 1e6:,.0f} MB free", "free some, or set STORYTELLER_CACHE"
        )


def cache_to_make(subject: Subject) -> Iterator[Finding]:
    """The chosen cache folder does not exist, nor does its parent: a typo, or a disk that is not mounted."""
    chosen = subject.run.data.cache_dir is not None or bool(os.environ.get("STORYTELLER_CACHE"))
    folder = cache_folder(subject.run.data.cache_dir)
    if not chosen or folder.parent.is_dir() or not os.access(existing(folder), os.W_OK | os.X_OK):
        return

    def make() -> str:
        folder.mkdir(parents=True)
        return f"made {folder}"

    where = "data.cache_dir" if subject.run.data.cache_dir is not None else "STORYTELLER_CACHE"
    yield warning(
        f"{where} names {folder}, and there is no {folder.parent}; is the name right, and the disk mounted?",
        f"mkdir -p {folder}",
        make,
    )


def stale_builds(subject: Subject) -> Iterator[Finding]:
    """A torch build that was killed leaves a file `lock`, and every later build waits for it forever."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    roots = {Path(chosen).expanduser()} if chosen else {Path("~/.cache/torch_extensions").expanduser()}
    roots.add(cache_folder() / "extensions")
    locks = sorted({lock for root in roots for depth in ("*/lock", "*/*/lock") for lock in root.glob(depth)})
    held = _open_files() if locks else set()
    for lock in locks:
        try:
            age = subject.machine.now() - lock.lstat().st_mtime
        except OSError:
            continue
        if lock in held or age < _OLD_LOCK_S:
            continue

        def remove(lock: Path = lock) -> str:
            lock.unlink(missing_ok=True)
            return f"removed {lock}"

        yield warning(
            f"{lock} was left {age / 3600:,.1f} hours ago by a build that was killed, and every later one of it "
            "waits for ever",
            f"rm {lock}",
            remove,
        )


def _open_files() -> set[Path]:
    """Files that the processes of this user have open."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        try:
            found |= {Path(each.path) for each in process.open_files()}
        except (psutil.Error, OSError):
            continue
    return found


def clock(subject: Subject) -> Iterator[Finding]:
    """A wrong clock makes files look newer or older than they are, and certificates invalid."""
    now = subject.machine.now()
    if (year := time.gmtime(now).tm_year) < 2026:
        yield warning(f"the clock of this machine says {year}", "set it (timedatectl set-ntp true)")
        return
    written = [step.stat().st_mtime for step in step_folders(subject.output_dir / CHECKPOINTS)]
    if written and max(written) > now + 3600:
        yield warning(
            f"checkpoints in {subject.output_dir} are from {(max(written) - now) / 3600:,.1f} hours in the future",
            "set the clock of this machine, or of the one that wrote them",
        )


QUICK: tuple[Check, ...] = (few_inodes, clock)
"""Checks right before a run, which finds out about its folders by itself."""
CHECKS: tuple[Check, ...] = (output_folder, cache, cache_to_make, few_inodes, stale_builds, clock)
