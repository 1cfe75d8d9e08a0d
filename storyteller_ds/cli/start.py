"""Start and end of the command's process.

While Python imports the other modules, Ctrl-C ends the process without a traceback. The process exits without Python's
finalization, during which library threads may abort a process whose work is done: those of gloo (1 of 14 runs of two
ranks, docs/experiments.md) and those of streamed datasets.
"""

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

_SUPERSEDED = {
    "storyteller-download": ("download",),
    "storyteller-preprocess": ("preprocess",),
    "storyteller-tokenizer": ("tokenizer", "train"),
    "storyteller-train": ("train",),
    "storyteller-generate": ("generate",),
}
"""Superseded command -> the words that replace it."""


def main() -> None:
    """Entry point of the `storyteller` command."""
    try:
        _command().main()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def superseded() -> None:
    """Entry point of the superseded system's commands, told apart by the name of the program."""
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    sys.argv[:1] = ["storyteller", *_SUPERSEDED[name]]
    main()


def _command() -> Any:
    """Import the command's module with the system's default SIGINT handling."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # ignored, as for background jobs of a shell script
        return importlib.import_module("storyteller_ds.cli.main")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = importlib.import_module("storyteller_ds.cli.main")
    signal.signal(signal.SIGINT, handler)
    return command
