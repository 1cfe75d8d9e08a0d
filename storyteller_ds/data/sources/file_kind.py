"""Recognizes files that are not plain text by their content, and refuses each kind by name.

JSON Lines in a `.txt` are JSON Lines: the name of a file counts only if its content looks like text.
"""

import codecs
import re
import shlex
from pathlib import Path

from storyteller_ds.data.sources.listing import suffix_of
from storyteller_ds.data.sources.tables import recognize_table
from storyteller_ds.data.sources.utf8_stream import opened_as_utf8
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError, open_regular, refuse_pickle

HEAD_BYTES = 1 << 16
"""How much of a file is read to recognize it (bytes)."""
_SAVE_AS_TEXT = "save its text as UTF-8, stories separated by blank lines or <|endoftext|>"
_ENCODED = "set data.encoding={}"
_TAKE_OUT = "take them out, for instance `tr -d '\\000' < {path} > {target}`"
_FOLDER_OF = "put it, named *.{}, alone into a folder, and give data.source=FOLDER data.text_field=COLUMN"
_TABLE = "give it as data.source=FILE"
_NAMED = {".json": "JSON", ".jsonl": "JSON Lines", ".ndjson": "JSON Lines", ".csv": "CSV", ".tsv": "TSV"}
"""The kind of a file by the suffix of its name, if its content looks like text."""
_PARQUET = b"PAR1"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS = "a Git LFS pointer"
_LFS_FIX = "fetch what it stands for with `git lfs pull`"
_SIGNATURES = {
    rb"PK\x03\x04": ("a zip archive (as .docx and .epub are)", f"unpack it, and {_SAVE_AS_TEXT}"),
    rb"(?s:.{257})ustar": ("a tar archive", "unpack it (tar -xf), and give the folder"),
    _PARQUET: ("Parquet", _TABLE),
    rb"ARROW1": ("Arrow", _FOLDER_OF.format("arrow")),
    rb"%PDF-": ("PDF", _SAVE_AS_TEXT),
    rb"\{\\rtf": ("RTF", _SAVE_AS_TEXT),
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html)": ("HTML", _SAVE_AS_TEXT),
    rb"(\xef\xbb\xbf)?\s*<\?xml": ("XML", _SAVE_AS_TEXT),
    re.escape(_LFS_POINTER): (_LFS, _LFS_FIX),
}
"""How each kind begins (a regular expression), what completes `FILE is …`, and how to get text from it."""
_CONTROLS = bytes(set(range(32)) - set(b"\0\b\t\n\v\f\r\x1a\x1b"))
"""Bytes that no text has in any encoding with one byte per character; NUL is checked separately."""


def refuse_other_than_text(path: Path, encoding: str | None = None) -> None:
    """Refuse a file that is not plain text, even if it could be read as such; see opened_as_utf8.

    Raises:
        DataError: it is not plain text; names the kind and how to get text from it.
        UntrustedFileError: it is a pickle, or not a regular file.
        OSError: it cannot be read.
    """
    head, is_whole = _head(path, encoding)
    found = next((kind for start, kind in _SIGNATURES.items() if re.match(start, head)), None) or _encoding(head)
    if found is None and (table := recognize_table(head.decode("utf-8-sig", errors="ignore"), is_whole)):
        found = table, _TABLE
    if found is not None:
        raise _refusal(path, f"is {found[0]}, not plain text", found[1])


def table_of(path: Path, encoding: str | None) -> str | None:
    """JSON, JSON Lines, CSV, TSV or Parquet, if a file is such a table; None: it is something else, or cannot be read.

    The name counts only if the content looks like text: a `.jsonl` whose first line is broken is JSON Lines.
    """
    try:
        head, is_whole = _head(path, encoding)
    except (DataError, UntrustedFileError, OSError):
        return None
    if head.startswith(_PARQUET):
        return "Parquet"
    if any(re.match(start, head) for start in _SIGNATURES) or _encoding(head) is not None:
        return None
    return recognize_table(head.decode("utf-8-sig", errors="ignore"), is_whole) or _NAMED.get(suffix_of(path))


def _head(path: Path, encoding: str | None) -> tuple[bytes, bool]:
    """The beginning of a file in UTF-8, and whether that is all of it."""
    refuse_pickle(path)
    with opened_as_utf8(path, encoding) as file:
        head = file.read(HEAD_BYTES + 1)
    return head[:HEAD_BYTES], len(head) <= HEAD_BYTES


def refuse_lfs_pointer(path: Path) -> None:
    """Raises DataError if a file is what Git LFS leaves in place of a file that was not fetched."""
    with open_regular(path) as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise _refusal(path, f"is {_LFS}, not data", _LFS_FIX)


def _refusal(path: Path, what: str, fix: str) -> DataError:
    """The error about a file; {path} and {target} in the fix become the file and one next to it, shell-quoted."""
    beside = path.with_suffix(".plain.txt")
    return DataError(f"{path} {what}; {fix.format(path=shlex.quote(str(path)), target=shlex.quote(str(beside)))}")


def nul_bytes(path: Path) -> DataError:
    """The error about NUL bytes in a text."""
    return _refusal(path, "has NUL bytes, which no text has", _TAKE_OUT)


def not_utf8(path: Path, value: int, position: int) -> DataError:
    """The error about a byte that is not UTF-8 in what is otherwise text."""
    return _refusal(
        path,
        f"is not UTF-8: byte 0x{value:02x} at position {position}",
        _ENCODED.format("windows-1252, or what it has"),
    )


def _encoding(head: bytes) -> tuple[str, str] | None:
    """The kind and the fix for UTF-16 without a byte order mark and for binary files; None: it is neither."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # accepts a character cut at the end
        is_utf8 = True
    except UnicodeDecodeError:
        is_utf8 = False
    has_controls = len(head.translate(None, _CONTROLS)) < 0.99 * len(head)
    nuls = head.count(0)
    # A text can have one of these flaws; reading it then reports the place. UTF-16 looks like control characters.
    if nuls <= len(head) / 5 and sum((nuls > 0, has_controls, not is_utf8)) < 2:
        return None
    name = max("utf-16le", "utf-16be", key=lambda each: _readable(head, each))
    if _readable(head, name):
        return "UTF-16 without a byte order mark", _ENCODED.format(name)
    return "a binary file", "give a UTF-8 text file, stories separated by blank lines or <|endoftext|>"


def _readable(head: bytes, encoding: str) -> int:
    """Number of ASCII characters in the bytes decoded with an encoding; 0 if the result is not text."""
    text = head[: len(head) // 2 * 2].decode(encoding, errors="replace")[:-1]  # the last one may be cut
    if sum(each.isprintable() or each.isspace() for each in text) < 0.99 * len(text) or "\ufffd" in text:
        return 0
    return sum(each.isascii() for each in text)
