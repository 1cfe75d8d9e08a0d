"""The prompts that a user gives: typed, or in a file with one per line."""

import codecs
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from storyteller_ds.errors import UserError
from storyteller_ds.untrusted import refuse_pickle

FILE_BYTES = 1 << 26
"""Size limit of a prompts file (bytes)."""
_STDIN = Path("-")


class Prompt(NamedTuple):
    """The beginning of a story."""

    text: str
    where: str
    """The option that gave it and the line of its file (from 1), for error messages."""


def typed(text: str, source: str, log: Callable[[str], None]) -> Prompt:
    """A prompt from the command line or a terminal, where Python keeps undecodable bytes as surrogates.

    Args:
        text: the prompt as Python received it.
        source: where it was typed.
        log: receives a line if there are bytes that are not UTF-8; they are read as U+FFFD.
    """
    return _decoded(text.encode("utf-8", "surrogateescape"), source, log)


def prompts_of(path: Path, log: Callable[[str], None]) -> list[Prompt]:
    r"""The nonblank lines of a file; only \n and \r\n end a line.

    Args:
        path: a UTF-8 text, which may be a FIFO; `-` is stdin.
        log: receives a line for each line with bytes that are not UTF-8; they are read as U+FFFD.

    Raises:
        UserError: the file cannot be read, is too large, is not text, or has no prompts.
    """
    source = f"--prompts_file {path}"
    content = _read(path, source)
    if b"\0" in content:
        raise UserError(f"{source} is not a UTF-8 text, it has NUL bytes; save it as UTF-8, one prompt a line")
    lines = re.split(rb"\r?\n", content.removeprefix(codecs.BOM_UTF8))
    prompts = [
        _decoded(line.strip(), f"{source} line {number}", log) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not prompts:
        raise UserError(f"{source} has no prompts; write one a line")
    return prompts


def _read(path: Path, source: str) -> bytes:
    try:
        if path == _STDIN:
            content = sys.stdin.buffer.read(FILE_BYTES + 1)
        else:
            refuse_pickle(path)
            with path.open("rb") as file:
                content = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}; give a UTF-8 file, one prompt a line") from None
    if len(content) > FILE_BYTES:
        raise UserError(f"{source} has more than {FILE_BYTES:,} bytes; split it")
    return content


def _decoded(line: bytes, where: str, log: Callable[[str], None]) -> Prompt:
    try:
        return Prompt(line.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        log(f"{where} is not UTF-8: byte 0x{line[error.start]:02x}; what is not is read as U+FFFD")
        return Prompt(line.decode("utf-8", "replace"), where)
