"""Lines of progress on stderr."""

from collections.abc import Callable

from rich.console import Console

from storyteller_ds.untrusted import for_terminal


def stderr_console(quiet: bool = False) -> Console:
    """The console of progress lines. In a notebook plain lines, though its stderr claims to be a terminal."""
    in_notebook = Console().is_jupyter
    return Console(stderr=True, quiet=quiet, force_jupyter=False, force_terminal=False if in_notebook else None)


def lines_to(console: Console) -> Callable[[str], None]:
    """A function that prints a line as it is: no markup, no wrapping, no control characters."""

    def log(line: str) -> None:
        console.print(for_terminal(line), highlight=False, markup=False, soft_wrap=True)

    return log
