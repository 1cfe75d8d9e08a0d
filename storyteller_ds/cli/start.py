"""Where a process of the command begins: while Python imports the rest, Ctrl-C ends it without a traceback."""

import importlib
import signal
from typing import Any


def main() -> None:
    """Entry point of the `storyteller` command."""
    _command().main()


def run_train() -> None:
    """Entry point of launch/train.py."""
    _command().run_train()


def _command() -> Any:
    """The module of the command, imported with the system's own handling of SIGINT."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # ignored, as in the background of a shell script
        return importlib.import_module("storyteller_ds.cli.main")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = importlib.import_module("storyteller_ds.cli.main")
    signal.signal(signal.SIGINT, handler)
    return command
