"""Lines for a person to read along."""

from collections.abc import Callable

from rich.console import Console

from storyteller_ds.untrusted import for_terminal


def lines_to(console: Console) -> Callable[[str], None]:
    """What prints a line as it is: no markup, no wrapping, and nothing in it that a terminal would obey."""

    def say(line: str) -> None:
        console.print(for_terminal(line), highlight=False, markup=False, soft_wrap=True)

    return say
