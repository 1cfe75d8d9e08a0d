"""A path that a user has typed means what it means to a shell, wherever it was typed."""

import os
from pathlib import Path

from storyteller_ds.errors import UserError

LONGEST_NAME = 255
"""Longest name of a file or folder (bytes): the limit of all common file systems."""


def expand_home(path: str | Path) -> Path:
    """Expand a leading `~` or `~name`, which shells leave alone in `--flag=~/x` and `field=~/x`.

    Raises:
        UserError: the path begins with `~/` and the home folder is unknown, or no file can have this name.
    """
    for name in Path(path).parts:
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise UserError(
                f"{name[:40]}...: a name of {len(os.fsencode(name)):,} bytes, and a file system takes {LONGEST_NAME}; "
                "is it a text in place of a path?"
            )
    expanded = os.path.expanduser(path)  # noqa: PTH111  # Path's own raises on `~name` that is just a name
    if expanded == "~" or expanded.startswith("~/"):
        raise UserError(f"{path}: there is no home folder for ~ (HOME is not set); write the whole path")
    return Path(expanded)


def given_path(path: object, name: str) -> Path:
    """A path that a caller has given as the argument of this name.

    Raises:
        UserError: it is not a path, or it is empty, which would mean the current folder; see also expand_home.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{name} is of type {type(path).__name__}; give a path")
    if not os.fspath(path):
        raise UserError(f"{name} is empty; give a path")
    return expand_home(os.fspath(path))


def is_utf8(name: str | Path) -> bool:
    """Whether a name is UTF-8, which some libraries insist on; a file system takes any bytes (Python: surrogates)."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True
