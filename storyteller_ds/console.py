"""Progress lines on stderr, tables on stdout, and durations as people say them."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from storyteller_ds.untrusted import for_terminal

PAGE_COLUMNS = 500
"""Width of a table that is not for a terminal, so that its lines are not wrapped."""


def stderr_console(quiet: bool = False) -> Console:
    """The console for progress lines; plain lines in a notebook, although its stderr claims to be a terminal."""
    in_notebook = Console().is_jupyter
    return Console(stderr=True, quiet=quiet, force_jupyter=False, force_terminal=False if in_notebook else None)


def lines_to(console: Console) -> Callable[[str], None]:
    """A function that prints a line as it is: no markup, no wrapping, no control characters."""

    def log(line: str) -> None:
        console.print(for_terminal(line), highlight=False, markup=False, soft_wrap=True)

    return log


def print_table(table: Table) -> None:
    """Print a table on stdout: as wide as the terminal, or without any wrapping into a file or a pipe."""
    width = None if sys.stdout.isatty() else PAGE_COLUMNS
    Console(markup=False, emoji=False, highlight=False, width=width).print(table)


def duration(seconds: float) -> str:
    """A duration in hours and minutes, or minutes and seconds."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{left} s"
