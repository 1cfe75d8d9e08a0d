"""Lines for a person to read along."""

from collections.abc import Callable

from rich.console import Console

from storyteller_ds.untrusted import for_terminal


def stderr_console(quiet: bool = False) -> Console:
    """Where a person reads along. In a notebook plain lines, though its stderr says that it is a terminal."""
    in_notebook = Console().is_jupyter
    return Console(stderr=True, quiet=quiet, force_jupyter=False, force_terminal=False if in_notebook else None)


def lines_to(console: Console) -> Callable[[str], None]:
    """What prints a line as it is: no markup, no wrapping, and nothing in it that a terminal would obey."""

    def say(line: str) -> None:
        console.print(for_terminal(line), highlight=False, markup=False, soft_wrap=True)

    return say
