"""What a file is by its content, where that is not plain text: each kind is refused by its own name.

The name of a file counts for nothing here: JSON Lines in a `.txt` are JSON Lines.
"""

import codecs
import shlex
from pathlib import Path
from typing import NamedTuple

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.shards import MAGIC as SHARD_MAGIC
from storyteller_ds.data.sources.tables import recognise_table
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import open_regular, refuse_pickle

HEAD_BYTES = 1 << 16
"""How much of a file is read to recognise it (bytes)."""
_SECTIONS = {"preset", *RunConfig.model_fields}
_PACKED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -dc"),
}
_OTHERS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"%PDF-": "PDF",
    b"{\\rtf": "RTF",
    b"SQLite format 3\0": "an SQLite database",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    SHARD_MAGIC: "a token shard of a prepared corpus",
    b"\x89HDF": "HDF5",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}
_TABLES = ("Parquet", "Arrow")
_SAVE_AS_TEXT = "save its text as UTF-8, stories separated by blank lines or <|endoftext|>"
_GIVE_TEXT = "give a UTF-8 text file, stories separated by blank lines or <|endoftext|>"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP = b"PK\x03\x04"
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_CONTROLS = bytes(set(range(32)) - set(b"\0\b\t\n\v\f\r\x1a\x1b"))
"""What no text has, in any encoding of one byte a character; NUL is checked by itself."""


class _Kind(NamedTuple):
    what: str
    """Completes `FILE is …`."""
    fix: str


_LFS = _Kind("a Git LFS pointer", "fetch what it stands for with `git lfs pull`")


def refuse_other_than_text(path: Path) -> None:
    """Refuse a file that is something else than plain text, though it could be read as such.

    Raises:
        DataError: it is; names the kind and the way to text.
        UntrustedFileError: it is a pickle, or not a regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        head = file.read(HEAD_BYTES + 1)
    is_whole, head = len(head) <= HEAD_BYTES, head[:HEAD_BYTES]
    if head.startswith(_ZIP) and not _first_member(head).endswith((b".pkl", b".npy")):
        raise DataError(
            f"{path} is a zip archive (as .docx and .epub are), not plain text; unpack it, and {_SAVE_AS_TEXT}"
        )
    refuse_pickle(path)
    kind = _signature(head, path) or _encoding(head, path) or _text_kind(head, is_whole)
    if kind is not None:
        raise DataError(f"{path} is {kind.what}, not plain text; {kind.fix}")


def refuse_lfs_pointer(path: Path) -> None:
    """Raises DataError if a file is what Git LFS leaves in the place of a file that was not fetched."""
    with open_regular(path) as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataError(f"{path} is {_LFS.what}, not data; {_LFS.fix}")


def nul_byte(path: Path, position: int) -> DataError:
    """The error about a NUL byte somewhere in a text."""
    return DataError(
        f"{path} has a NUL byte at position {position}, which no text has; "
        f"take them out, for instance `tr -d '\\000' < {shlex.quote(str(path))} > {_beside(path, '.clean.txt')}`"
    )


def conversion(path: Path, encoding: str) -> str:
    """The command that makes UTF-8 of a file."""
    command = f"iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > {_beside(path, '.utf8.txt')}"
    return f"convert it, for instance `{command}`"


def _beside(path: Path, suffix: str) -> str:
    return shlex.quote(str(path.with_suffix(suffix)))


def _first_member(head: bytes) -> bytes:
    """The name of the first file in a zip archive (bytes 26-27: its length; from 30: the name)."""
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def _signature(head: bytes, path: Path) -> _Kind | None:
    """What the first bytes of a file identify."""
    packed = next((names for start, names in _PACKED.items() if head.startswith(start)), None)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        packed = "bzip2", "bzip2 -dc"
    if packed is not None:
        suffix = "" if path.suffix in (".gz", ".bz2", ".xz", ".zst", ".lz4") else ".unpacked.txt"
        command = f"{packed[1]} {shlex.quote(str(path))} > {_beside(path, suffix)}"
        return _Kind(f"packed with {packed[0]}", f"unpack it, for instance `{command}`")
    if head[257:262] == b"ustar":
        return _Kind("a tar archive", "unpack it (tar -xf), and give the folder")
    what = next((what for start, what in _OTHERS.items() if head.startswith(start)), None)
    if what in _TABLES:
        suffix = f".{what.lower()}"
        return _Kind(
            what, f"put it, named *{suffix}, alone into a folder, and give data.source=FOLDER data.text_field=COLUMN"
        )
    if head.startswith(_LFS_POINTER):
        return _LFS
    if what is not None:
        return _Kind(what, _SAVE_AS_TEXT if what in ("PDF", "RTF") else _GIVE_TEXT)
    if head[8:10] == b'{"' and b"\0" in head[:8]:
        return _Kind("a safetensors file, which holds weights", _GIVE_TEXT)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:20].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return _Kind("XML" if start.startswith(b"<?xml") else "HTML", _SAVE_AS_TEXT)
    return None


def _encoding(head: bytes, path: Path) -> _Kind | None:
    """Encodings of several bytes a character, and binary files."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return _Kind(name, conversion(path, name.lower()))
    is_utf8 = _is_utf8(head)
    has_controls = len(head.translate(None, _CONTROLS)) < 0.99 * len(head)
    nuls = head.count(0)
    # A text can have one of these flaws; reading it then names the place. UTF-16 looks like control characters.
    if nuls <= len(head) / 5 and sum((nuls > 0, has_controls, not is_utf8)) < 2:
        return None
    name = max(("utf-32le", "utf-32be", "utf-16le", "utf-16be"), key=lambda each: _readable(head, each))
    if _readable(head, name):
        return _Kind(f"{name[:6].upper()} without a byte order mark", conversion(path, name))
    return _Kind("a binary file", _GIVE_TEXT)


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which a character cut at the end does not disturb
    except UnicodeDecodeError:
        return False
    return True


def _readable(head: bytes, encoding: str) -> int:
    """Number of ASCII characters of the text that the bytes are in an encoding; 0 if they are none."""
    unit = 4 if "32" in encoding else 2
    text = head[: len(head) // unit * unit].decode(encoding, errors="replace")[:-1]  # the last may be cut
    if sum(each.isprintable() or each.isspace() for each in text) < 0.99 * len(text) or "\ufffd" in text:
        return 0
    return sum(each.isascii() for each in text)


def _text_kind(head: bytes, is_whole: bool) -> _Kind | None:
    """Text in the format of something else."""
    text = head.decode("utf-8-sig", errors="ignore")
    if _is_run_config(text):
        return _Kind("a run config", "give it with --config, and a text here")
    table = recognise_table(text, is_whole)
    if table is None:
        return None
    if table.column is None:
        return _Kind(table.what, _SAVE_AS_TEXT)
    return _Kind(
        table.what,
        f"put it, named *{table.suffix}, alone into a folder, and give "
        f"data.source=FOLDER data.text_field={shlex.quote(table.column)}",
    )


def _is_run_config(text: str) -> bool:
    """Whether every line without indentation is a section of a run config; the speakers of a play are not."""
    names = [line.partition(":") for line in text.splitlines() if line.strip() and line[0] not in " \t#-"]
    return bool(names) and all(colon and name in _SECTIONS for name, colon, _ in names)
