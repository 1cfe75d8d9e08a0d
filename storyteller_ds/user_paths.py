"""A path that a user has typed means what it means to a shell, wherever it was typed."""

import os
from pathlib import Path

from storyteller_ds.errors import UserError


def expand_home(path: str | Path) -> Path:
    """`~` and `~name` at the beginning as home folders; shells leave them alone in `--flag=~/x` and `field=~/x`.

    Raises:
        UserError: it begins with `~/`, and the home folder is not known.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111  # Path's own raises on `~name` that is just a name
    if expanded == "~" or expanded.startswith("~/"):
        raise UserError(f"{path}: there is no home folder for ~ (HOME is not set); write the whole path")
    return Path(expanded)


def is_utf8(name: str | Path) -> bool:
    """Whether a name is UTF-8, which some libraries insist on; a file system takes any bytes (Python: surrogates)."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True
