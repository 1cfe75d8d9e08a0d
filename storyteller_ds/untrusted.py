"""Files that somebody else may have written, checked before anything in them is used.

Nothing here unpickles. Only regular files are read (reading a FIFO or a device could hang), and only if they are no
larger than a file of their kind can be.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from storyteller_ds.errors import UserError

JSON_BYTES = 1 << 24
"""Largest JSON file that is read (bytes): a manifest of many ranks and a tokenizer of 100,000 tokens are smaller."""
JSON_DEPTH = 64
"""Deepest nesting of a JSON file that is read; ours have fewer than ten levels."""

_TERMINAL_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed, characters that change the writing direction, and surrogates."""
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib", ".npy", ".npz")
_PICKLE_STARTS = [bytes([0x80, protocol]) for protocol in range(2, 6)]
"""First bytes of the pickle protocols that announce themselves. (torch.save's zip archive is not text in any case.)"""


class UntrustedFileError(UserError):
    """A file that is not what it should be; the message is `FILE: what is wrong`, and the caller adds the fix."""


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading; never hangs.

    Raises:
        UntrustedFileError: it is a folder, a FIFO, a socket or a device, or the name is impossible.
        OSError: it cannot be opened.
    """
    try:
        # Opening a FIFO without a writer would hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise UntrustedFileError(f"{str(path)!r}: {error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UntrustedFileError(f"{path} cannot be read: it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        UntrustedFileError: it is larger, or not a regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UntrustedFileError(f"{path}: larger than {limit:,} bytes, which no file of its kind is")
    return content


def read_text(path: Path, limit: int) -> str:
    """The content of a UTF-8 file of at most `limit` bytes, without a byte order mark.

    Raises:
        UntrustedFileError: it is a pickle, larger, not a regular file, or not UTF-8.
        OSError: it cannot be read.
    """
    refuse_pickle(path)
    try:
        return read_bytes(path, limit).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UntrustedFileError(f"{path}: not UTF-8 at byte {error.start}") from None


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """The value of a JSON file; see parse_json.

    Raises:
        UntrustedFileError: it is larger than `limit`, not a regular file, or not such JSON.
        OSError: it cannot be read.
    """
    return parse_json(read_text(path, limit), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text (RFC 8259) in which no key is given twice and every number is finite.

    Raises:
        UntrustedFileError: the text is not such JSON; the message names `where`.
    """

    def refuse(reason: str) -> NoReturn:
        raise UntrustedFileError(f"{where}: {reason}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [key for key, _ in pairs]
            refuse(f"the key {next(key for key in result if names.count(key) > 1)!r:.60} is given twice")
        return result

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refuse(f"the number {number:.60} is too large")

    try:
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_float=finite,
            parse_constant=lambda name: refuse(f"{name} is not a number that JSON has"),
        )
    except ValueError as error:
        refuse(str(error))
    except RecursionError:
        refuse(f"nested more than {JSON_DEPTH} deep")
    return value if _depth(value) <= JSON_DEPTH else refuse(f"nested more than {JSON_DEPTH} deep")


def seal_of(entries: Mapping[str, Any]) -> str:
    """sha256 of a JSON object without its entry "seal", which reveals damage to the file.

    Anyone can compute it: it is not a signature.
    """
    sealed = {key: value for key, value in entries.items() if key != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`, after checking that it lies there.

    Raises:
        UntrustedFileError: `name` is not a plain name, or a link leads out of the folder.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise UntrustedFileError(f"{folder}: {name!r:.80} is not the name of a file in it")
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UntrustedFileError(f"{path}: a link that leads out of its folder")
    return path


def refuse_pickle(path: Path, by_name: bool = True) -> None:
    """Refuse a file that can only be read by unpickling, recognized by its first bytes or its name.

    Args:
        path: the file.
        by_name: False where other files also have names of pickles, such as *.bin.

    Raises:
        UntrustedFileError: it is such a file.
    """
    if not path.is_file():
        return
    is_pickle = by_name and path.suffix.lower() in _PICKLE_SUFFIXES
    with contextlib.suppress(OSError), open_regular(path) as file:  # reading it will report why
        is_pickle |= file.read(2) in _PICKLE_STARTS
    if is_pickle:
        raise UntrustedFileError(f"{path}: a pickle, which can run code when it is read, is never read")


def for_terminal(text: str) -> str:
    """The text with control characters, and what a terminal cannot show, as escapes."""
    return _TERMINAL_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def _depth(value: Any) -> int:
    """Nesting depth of lists and objects, found without recursion; code that reads the value later may recurse."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth
