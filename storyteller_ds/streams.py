"""stdout and stderr of a command, whose reader may be gone or not reading, or whose disk may be full.

The rule: a line that cannot be written never ends training, nor blocks it for longer than PATIENCE_S. It is dropped
and the run continues: metrics.jsonl and the checkpoints have the results. (Otherwise a pipe that nobody reads, or a
terminal after Ctrl-S, would block the run until its watchdog ends it.)

No character ends a command either: what stdout or stderr cannot encode is written as an escape, and bytes of stdin
that cannot be decoded are kept as surrogates.

If stdout is the result of a command (a story, a listing), losing it ends the command: silently if the reader has
closed the pipe (`... | head`), else with the reason.
"""

import contextlib
import errno
import io
import os
import select
import sys
import threading
from typing import Any, TextIO

from storyteller_ds.errors import EXIT_READER_GONE, StorytellerError

PATIENCE_S = 1.0
"""How long training waits for a reader that does not read; after that no line waits until it reads again."""


class OutputLost(StorytellerError):
    """The output of a command can no longer be written."""

    def __init__(self, reason: OSError) -> None:
        if reason.errno == errno.EPIPE:
            super().__init__("")
            self.exit_code = EXIT_READER_GONE
        else:
            super().__init__(f"stdout cannot be written: {reason.strerror}; redirect it elsewhere")


def secure_output(stdout_matters: bool) -> None:
    """Make stdout and stderr follow the rule above; must be called before any file is opened.

    Args:
        stdout_matters: losing it ends the command with OutputLost, and there is no limit to waiting for a reader.
    """
    _fill_closed_descriptors()
    patience = None if stdout_matters else PATIENCE_S
    # Not if they have been replaced, as tests do.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text_stream(_Output(1, patience, stdout_matters), sys.stdout)
        sys.__stdout__ = sys.stdout  # type: ignore[misc]  # final for typeshed; the next call checks it
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text_stream(_Output(2, patience, matters=False), sys.stderr)
        sys.__stderr__ = sys.stderr  # type: ignore[misc]
    with contextlib.suppress(io.UnsupportedOperation):  # something has been read already
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")


def write_unlocked(descriptor: int, text: str) -> None:
    """Write in one piece and without any lock, which another thread may hold; returns in time, written or not."""

    def write() -> None:
        with contextlib.suppress(OSError):
            os.write(descriptor, text.encode(errors="replace"))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(PATIENCE_S)


def print_unlocked(message: str) -> None:
    """Print a line on stderr with write_unlocked."""
    write_unlocked(2, f"storyteller: {message}\n")


class _Output(io.FileIO):
    """A descriptor that follows the rule."""

    def __init__(self, descriptor: int, patience_s: float | None, matters: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._patience_s, self._wait_s = patience_s, patience_s
        self.matters, self._lost = matters, False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            while not self._lost and _is_ready(self.fileno(), self._wait_s):
                # At most what a ready pipe takes without blocking (pipe(7)).
                written = super().write(memoryview(data)[: select.PIPE_BUF])
                if written is not None:  # else the descriptor is non-blocking, and another process was faster
                    self._wait_s = self._patience_s
                    return written
        except OSError as error:
            if self.matters:
                self._lost = True  # raised once: Python flushes again when it ends
                raise OutputLost(error) from None
            return size
        self._wait_s = 0.0
        return size


def _is_ready(descriptor: int, seconds: float | None) -> bool:
    return bool(select.select([], [descriptor], [], seconds)[1])


def _text_stream(output: _Output, before: TextIO | None) -> "io.TextIOWrapper[io.BufferedWriter]":
    encoding = "utf-8" if before is None else before.encoding
    return io.TextIOWrapper(io.BufferedWriter(output), encoding, "backslashreplace", line_buffering=True)


def _fill_closed_descriptors() -> None:
    """Open /dev/null if stdin, stdout or stderr is closed, because the next opened file would take its place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free descriptor: this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115  # as long as the process
