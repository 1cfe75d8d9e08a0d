"""Where a process of the command begins and ends.

While Python imports the rest, Ctrl-C ends it without a traceback. It ends without Python's finalisation, in which
threads of libraries may abort a process whose work is done: those of gloo (1 of 14 runs of two ranks,
docs/experiments.md), and those of datasets that are read as a stream.
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
"""What stands for each."""


def main() -> None:
    """Entry point of the `storyteller` command."""
    try:
        _command().main()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def superseded() -> None:
    """Entry point of the commands that the superseded system had, each by the name of its program."""
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    sys.argv[:1] = ["storyteller", *_SUPERSEDED[name]]
    main()


def _command() -> Any:
    """The module of the command, imported with the system's own handling of SIGINT."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # ignored, as in the background of a shell script
        return importlib.import_module("storyteller_ds.cli.main")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = importlib.import_module("storyteller_ds.cli.main")
    signal.signal(signal.SIGINT, handler)
    return command
