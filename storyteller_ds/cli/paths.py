"""The parameter type of every option and argument that takes a path."""

from pathlib import Path
from typing import Any

import click

from storyteller_ds.user_paths import expand_home


class UserPath(click.Path):
    """A path, with `~` as the home folder: shells expand it in `--flag ~/x` and not in `--flag=~/x`.

    Args:
        or_word: the option also takes words, as --resume takes `auto`; its values stay strings.
        or_stream: `-` means stdin or stdout.
    """

    def __init__(self, or_word: bool = False, or_stream: bool = False) -> None:
        super().__init__(path_type=str if or_word else Path, allow_dash=or_stream)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Called by click. An empty path, as from an unset variable, would mean the current folder."""
        if value == "":
            self.fail("it is empty; give a path", param, ctx)
        if isinstance(value, str):
            expanded = str(expand_home(value))
            value = expanded if value.startswith("~") else value
        return super().convert(value, param, ctx)
