"""The output folder of a run: who may write to it, and where things are."""

import contextlib
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from storyteller_ds.checkpoint.names import CHECKPOINTS as CHECKPOINTS
from storyteller_ds.errors import UserError
from storyteller_ds.untrusted import UntrustedFileError, read_json, read_text

METRICS = "metrics.jsonl"
SAMPLES = "samples.md"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TENSORBOARD = "tensorboard"
MLRUNS = "mlruns"
REPORT, REPORT_MARKDOWN, REPORT_PICTURES = "report.html", "report.md", "report"
EVALUATION, ATLAS = "evaluation.json", "atlas.json"
"""Results of `storyteller report --measure`."""
WANDB_RUN_ID, MLFLOW_RUN_ID = "wandb_run_id", "mlflow_run_id"
"""Keys in config.json: the tracker runs to continue after a resume."""
LOCK = ".lock"
"""Held by the process that writes to the folder."""
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Do not follow a link and do not block on a FIFO: the folder may come from a stranger."""
_DERIVED = (REPORT, REPORT_MARKDOWN, REPORT_PICTURES, EVALUATION, ATLAS)
_RECORDS = (METRICS, SAMPLES, CONFIG, TOKENIZER, CHECKPOINTS, TENSORBOARD, MLRUNS, *_DERIVED)


@contextlib.contextmanager
def written_record(path: Path) -> Iterator[None]:
    """Turn a disk error while writing a record into a UserError.

    Raises:
        UserError: the record cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}; the checkpoints so far are untouched; "
            "make room or fix the disk, and run again"
        ) from error


def holder(path: Path) -> str | None:
    """Who is writing to a run folder, as ` (pid 12 on host)`, or "" if that is not known; None: nobody is."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return _named(read_text(path / LOCK, 200))
        except (OSError, UntrustedFileError):
            return ""
    finally:
        os.close(descriptor)
    return None


def _named(written: str) -> str:
    """The process named in a lock file, which may come from a stranger."""
    return f" ({written.strip()})" if re.fullmatch(r"pid \d+ on [\w.-]+\n?", written) else ""


class RunFolder:
    """One run's folder, held exclusively by this object until close(), or until the process ends.

    Raises:
        UserError: another run is writing here, or the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in (METRICS, SAMPLES, CONFIG, TOKENIZER, TENSORBOARD, MLRUNS):
            if (path / name).is_symlink():
                raise UserError(f"{path / name} is a link, and would be written through; remove it")
        for name in (METRICS, SAMPLES, CONFIG, TOKENIZER):
            if (path / name).exists() and not (path / name).is_file():
                # Reading a FIFO would wait for a writer.
                raise UserError(f"{path / name} is not a file; remove it, or choose another --output_dir")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = os.fdopen(os.open(path / LOCK, _LOCK_FLAGS, 0o666), "r+", encoding="utf-8")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {path}{self._holder()}; wait for it, or choose another --output_dir"
            ) from None
        except OSError as error:
            raise UserError(f"output folder {path} cannot be used: {error}; choose another --output_dir") from None
        self._lock.truncate(0)
        self._lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def _holder(self) -> str:
        try:
            return _named(self._lock.read(200))
        except (OSError, ValueError):
            return ""

    def set_aside(self, moved: Iterable[str] = _RECORDS, copied: Iterable[str] = ()) -> Path | None:
        """Move the records of an earlier run into previous-N, so that a new one starts clean; nothing is deleted.

        Args:
            moved: names in this folder; missing ones are ignored.
            copied: likewise, names to copy because the new run continues with them.

        Returns:
            The previous-N folder; None if there is nothing to move.

        Raises:
            UserError: the records cannot be moved or copied.
        """
        moved, copied = ([name for name in names if (self.path / name).exists()] for names in (moved, copied))
        if not moved:
            return None
        taken = [path.name.removeprefix("previous-") for path in self.path.glob("previous-*")]
        number = 1 + max((int(name) for name in taken if name.isdigit()), default=0)
        aside = self.path / f"previous-{number}"
        with written_record(aside):
            aside.mkdir()
            for name in copied:
                shutil.copyfile(self.path / name, aside / name)
            for name in moved:
                (aside / name).parent.mkdir(exist_ok=True)
                (self.path / name).rename(aside / name)
        return aside

    def tracked_as(self, key: str) -> str | None:
        """The tracker run that this folder's records have gone to so far, if any; see WANDB_RUN_ID for the keys."""
        try:
            value = read_json(self.path / CONFIG).get(key)
        except (OSError, UntrustedFileError, AttributeError):
            return None
        return value if isinstance(value, str) else None
