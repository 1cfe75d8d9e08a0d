"""A user name and a folder for caches, on a system that has neither.

A container often runs under a user id without a name, with no HOME, with HOME=/, or with one that is not writable.
Libraries (torch, Triton, wandb, datasets) insist on both; without them they end in a traceback or log to the terminal.
"""

import getpass
import os
import pwd
import stat
import tempfile
from pathlib import Path

from storyteller_ds.errors import UserError

_CACHES = ("STORYTELLER_CACHE", "TORCH_EXTENSIONS_DIR", "TRITON_HOME", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
"""Variables that name folders for our caches and those of libraries. If unset, these are in the home folder."""

_notice: str | None = None


def settle_home() -> None:
    """Set LOGNAME, HOME or the cache variables in this process's environment if needed.

    Raises:
        UserError: there is no folder for temporary files either.
    """
    global _notice  # a fact about the process
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    home = _home()
    if home is not None and _can_be_made(home / ".cache"):
        os.environ["HOME"] = str(home)  # not every library looks it up if it is not set
        return
    folder = _temporary_folder()
    if not os.environ.get("STORYTELLER_CACHE"):
        what = "there is no home folder" if home is None else f"the home folder {home} cannot be written"
        _notice = f"{what}: caches are in {folder}, and may not last; set STORYTELLER_CACHE to a folder that does"
    if home is None or not os.access(home, os.R_OK | os.X_OK):
        os.environ["HOME"] = str(folder)
        return
    # Its files, such as logins, are still needed.
    for variable in _CACHES:
        if not os.environ.get(variable):
            os.environ[variable] = str(folder / variable.lower())


def home_notice() -> str | None:
    """A line for the log if caches may not last; None otherwise."""
    return _notice


def _home() -> Path | None:
    if home := os.environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _can_be_made(folder: Path) -> bool:
    """Whether this user can write to the folder, or create it."""
    there = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _temporary_folder() -> Path:
    """A folder for this user, the same for every process; or a new one if another user has taken its name."""
    try:
        folder = Path(tempfile.gettempdir()) / f"storyteller_ds-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    except OSError as error:
        raise UserError(
            f"no folder for caches can be made ({error}); set HOME or TMPDIR to a folder that can be written"
        ) from None
    return folder
