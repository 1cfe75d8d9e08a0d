"""Files that a stranger may have written: looked at before anything in them is believed, allocated or run.

Nothing here unpickles. What is read is a regular file (a FIFO or a device could be waited on for ever), no larger
than its kind can be, and says what it holds without contradiction.

The layout of a safetensors file (https://github.com/huggingface/safetensors#format): 8 bytes with the length of the
header, little-endian; the header, a JSON object of name -> {"dtype", "shape", "data_offsets"}; the tensors' bytes.
"""

import hashlib
import json
import math
import os
import re
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from storyteller_ds.errors import UserError

JSON_BYTES = 1 << 24
"""Largest JSON file that is read (bytes): a manifest of many ranks and a tokenizer of 100,000 tokens are below it."""
JSON_DEPTH = 64
"""Deepest nesting of a JSON file that is read; ours have less than ten levels."""
SAFETENSORS_HEADER_BYTES = 1 << 24
"""Longest header of a safetensors file (bytes), some 100,000 tensors."""
SAFETENSORS_DIMENSIONS = 8
"""Most dimensions of a tensor."""
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of one number of each safetensors dtype."""

_TERMINAL_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what turns the direction of writing, and what no encoding has."""
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib", ".npy", ".npz")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
"""torch.save's zip archive, and the pickle protocols that announce themselves."""


class UntrustedFileError(UserError):
    """A file that is not what it should be; the message is `FILE: what is wrong`, the mend is the caller's to say."""


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading; never waits, whatever `path` is.

    Raises:
        UntrustedFileError: it is a folder, a FIFO, a socket or a device, or there can be no such name.
        OSError: it cannot be opened.
    """
    try:
        # A FIFO without a writer would be waited on for ever.
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
        UntrustedFileError: it is larger, or no regular file.
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
        UntrustedFileError: it is larger, no regular file, or not UTF-8.
        OSError: it cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UntrustedFileError(f"{path}: not UTF-8 at byte {error.start}") from None


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """The value of a JSON file; see parse_json.

    Raises:
        UntrustedFileError: it is larger than `limit`, no regular file, or not such JSON.
        OSError: it cannot be read.
    """
    return parse_json(read_text(path, limit), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text (RFC 8259) in which no key is given twice and every number is finite.

    Raises:
        UntrustedFileError: it is not; the message names `where`.
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
    except json.JSONDecodeError as error:
        raise UntrustedFileError(f"{where} line {error.lineno} column {error.colno}: {error.msg}") from None
    except ValueError as error:  # more digits than int() takes
        raise UntrustedFileError(f"{where}: a value in it cannot be read ({error})") from None
    except RecursionError:
        refuse(f"nested more than {JSON_DEPTH} deep")
    return value if _depth(value) <= JSON_DEPTH else refuse(f"nested more than {JSON_DEPTH} deep")


def seal_of(entries: Mapping[str, Any]) -> str:
    """sha256 of what a JSON file says beside its "seal": a file that no other vouches for vouches for itself.

    It finds damage; a stranger can make one as well as we.
    """
    sealed = {key: value for key, value in entries.items() if key != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def inside(folder: Path, name: object) -> Path:
    """The file `name` of `folder`, after checking that it lies there.

    Raises:
        UntrustedFileError: `name` is not a plain name, or a link leads out of the folder.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise UntrustedFileError(f"{folder}: {name!r:.80} is not the name of a file in it")
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UntrustedFileError(f"{path}: a link that leads out of its folder")
    return path


def refuse_pickle(path: Path) -> None:
    """Refuse what can only be read by unpickling, by its name and by how it begins.

    Raises:
        UntrustedFileError: it is a file of that kind.
    """
    if not path.is_file():
        return
    by_name = path.suffix.lower() in _PICKLE_SUFFIXES
    try:
        with open_regular(path) as file:
            by_content = file.read(4).startswith(_PICKLE_STARTS)
    except OSError:
        by_content = False  # whoever reads it will say why not
    if by_name or by_content:
        raise UntrustedFileError(f"{path}: a pickle or an archive, which can run code when it is read, is never read")


def for_terminal(text: str) -> str:
    """The text with what a terminal would obey, or could not show, spelt out."""
    return _TERMINAL_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class TensorEntry(NamedTuple):
    """What a safetensors header says about one tensor."""

    dtype: str
    """A key of DTYPE_BYTES."""
    shape: tuple[int, ...]
    """Length of each dimension."""


def check_safetensors(path: Path) -> dict[str, TensorEntry]:
    """What a safetensors file holds, after checking that header and file agree; reads only the header.

    The bytes of the tensors must follow each other from the header to the end of the file, without gap or overlap,
    so that a tensor is never larger than the file.

    Raises:
        UntrustedFileError: the file is not such a file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= min(size - 8, SAFETENSORS_HEADER_BYTES):
            raise UntrustedFileError(f"{path}: not a safetensors file, a header of {length} bytes cannot be in it")
        text = file.read(length)
    try:
        header = parse_json(text.decode("utf-8"), f"{path}: its header")
    except UnicodeDecodeError:
        raise UntrustedFileError(f"{path}: its header is not UTF-8") from None
    if not isinstance(header, dict):
        raise UntrustedFileError(f"{path}: its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UntrustedFileError(f"{path}: its __metadata__ is not of texts")
    entries = {name: _tensor_entry(path, name, entry) for name, entry in header.items()}
    end = 0
    for (begin, stop), name in sorted((span, name) for name, (_, span) in entries.items()):
        if begin != end:
            raise UntrustedFileError(
                f"{path}: tensor {name!r:.80} begins at byte {begin}, the one before ends at {end}"
            )
        end = stop
    if 8 + length + end != size:
        raise UntrustedFileError(f"{path}: {size} bytes, its header says {8 + length + end}")
    return {name: entry for name, (entry, _) in entries.items()}


def _tensor_entry(path: Path, name: str, entry: Any) -> tuple[TensorEntry, tuple[int, int]]:
    """One entry of the header, and where its bytes begin and end."""

    def refuse(reason: str) -> NoReturn:
        raise UntrustedFileError(f"{path}: tensor {name!r:.80} has {reason}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse("not the three entries dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        refuse(f"the unknown dtype {dtype!r:.40}")
    if not _are_sizes(shape) or len(shape) > SAFETENSORS_DIMENSIONS:
        refuse(f"no possible shape ({shape!r:.60})")
    if not _are_sizes(offsets) or len(offsets) != 2:
        refuse(f"no possible data_offsets ({offsets!r:.60})")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        refuse(f"{offsets[1] - offsets[0]} bytes, its shape needs {expected}")
    return TensorEntry(dtype, tuple(shape)), (offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _depth(value: Any) -> int:
    """Levels of lists and objects within each other; without recursion, which what reads it later may use."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth
