"""Documents out of one text file of any size, read piece by piece."""

import codecs
import hashlib
import io
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from storyteller_ds.config.data import Split
from storyteller_ds.config.files import nearest_sibling
from storyteller_ds.data.sources.file_kind import not_utf8, nul_bytes, refuse_other_than_text
from storyteller_ds.data.sources.source import LOOKED_AT
from storyteller_ds.data.sources.utf8_stream import opened_as_utf8
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError

MARKER = "<|endoftext|>"
CHUNK_BYTES = 1 << 20
# Part of the fingerprint: raised whenever the same bytes would be cut into other documents.
FORMAT = b"storyteller text file 1\n"
_BYTE_ORDER_MARK = "\ufeff"
_MARKS_DROPPED = b"byte order marks within are dropped"
"""Part of the fingerprint of files that have any, which once were left in the text."""
SHORT_WORDS = 100
"""A median document below it is more likely a paragraph than a story (words)."""


@dataclass(frozen=True)
class TextFileSource:
    """A text file, packed or not, whose documents end as `split` says; auto: with `<|endoftext|>` or, where it has
    none, at blank lines.

    CRLF and lone CR count as LF; byte order marks are dropped, also within, where files were joined. Memory
    use is that of the longest document or line, not of the file.
    """

    path: Path
    encoding: str | None = None
    """As data.encoding."""
    split: Split = "auto"
    """As data.split."""

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the text in UTF-8 and of the split, wherever the file lies; reads all of it, once.

        Raises DataError when the file is missing, empty, a folder, or cannot be read.
        """
        mark = codecs.BOM_UTF8
        digest, marks, start, window = hashlib.sha256(FORMAT), 0, b"", b""
        for chunk in _chunks(self.path, self.encoding):
            digest.update(chunk)
            start = (start + chunk[: len(mark)])[: len(mark)]
            window = window[1 - len(mark) :] + chunk
            marks += window.count(mark)
        if marks > (start == mark):
            digest.update(_MARKS_DROPPED)
        if self.split != "auto":
            digest.update(f"split: {self.split}".encode())
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """The documents in the order of the file; none where all is white space and markers.

        Raises DataError when the file is missing, empty, a folder or unreadable, and on reaching a byte that is not
        UTF-8.
        """
        return documents_of(self.path, self.encoding, self.split)

    def remarks(self) -> list[str]:
        """How blank lines have split a file without markers, unless the split was chosen."""
        if self.split != "auto" or has_marker(self.path, self.encoding):
            return []
        documents = list(islice(self.documents(), LOOKED_AT))
        return [on_blank_lines(self.name, documents)] if documents else []


def documents_of(path: Path, encoding: str | None = None, split: Split = "auto") -> Iterator[str]:
    """The documents of a file, which may be none; raises DataError as TextFileSource does."""
    # Which rule holds is only known once the marker was seen or the whole file was searched, so
    # a file of blank-line documents is read twice rather than kept in memory.
    if split == "auto":
        split = "marker" if has_marker(path, encoding) else "blank_line"
    for piece in _PIECES[split](_lines(path, encoding)):
        document = piece.strip()
        if document:
            yield document


def has_marker(path: Path, encoding: str | None = None) -> bool:
    """Whether the documents of a file are those between markers."""
    return any(MARKER in line for line in _lines(path, encoding))


def on_blank_lines(name: str, documents: Sequence[str]) -> str:
    """How blank lines have split documents, and what helps if that is not what was meant.

    Args:
        name: where they are from.
        documents: the first LOOKED_AT of them, one or more.
    """
    words = statistics.median_low(len(document.split()) for document in documents)
    length = f"{words:,} word{'s' if words != 1 else ''}"
    if len(documents) == 1:
        each_line = ", or set data.split=line if each line is one" if "\n" in documents[0] else ""
        return (
            f"{name} is one document of {length}, for it has no blank line within and no {MARKER}; "
            f"put {MARKER} between its stories{each_line}"
        )
    first = "the first " if len(documents) == LOOKED_AT else ""
    advice = f"; put {MARKER} between stories that have blank lines within" if words < SHORT_WORDS else ""
    return f"{name}: {first}{len(documents):,} documents of {length} (median), split at blank lines{advice}"


@contextmanager
def _opened(path: Path, encoding: str | None) -> Iterator[BinaryIO]:
    try:
        if not path.exists():
            raise DataError(_missing(path))
        refuse_other_than_text(path, encoding)
        with opened_as_utf8(path, encoding) as file:
            if not cast(BufferedReader, file).peek(1):
                raise DataError(f"{path} is empty; put in stories separated by blank lines or {MARKER}")
            yield file
    except UntrustedFileError as error:
        raise DataError(f"{error}; give a text file") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check the file and its disk") from error


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path} does not exist, nor does its folder {path.parent}; check the path"
    return f"{path} does not exist{nearest_sibling(path) or '; check the path'}"


def _chunks(path: Path, encoding: str | None) -> Iterator[bytes]:
    with _opened(path, encoding) as file:
        while chunk := file.read(CHUNK_BYTES):
            if b"\0" in chunk:
                raise nul_bytes(path)
            yield chunk


def _lines(path: Path, encoding: str | None) -> Iterator[str]:
    """The lines with LF at their ends, and without byte order marks."""
    with _opened(path, encoding) as file:
        text = io.TextIOWrapper(file, encoding="utf-8")
        try:
            for line in text:
                if "\0" in line:
                    raise nul_bytes(path)
                yield line.replace(_BYTE_ORDER_MARK, "")
        except UnicodeDecodeError as error:
            position = file.tell() - len(error.object) + error.start
            raise not_utf8(path, error.object[error.start], position) from error


def _between_markers(lines: Iterable[str]) -> Iterator[str]:
    # Joined only when a document ends: adding to a string would be quadratic in long documents.
    pieces: list[str] = []
    for line in lines:
        *ended, rest = line.split(MARKER)
        for piece in ended:
            yield "".join([*pieces, piece])
            pieces = []
        pieces.append(rest)
    yield "".join(pieces)


def _between_blank_lines(lines: Iterable[str]) -> Iterator[str]:
    pieces: list[str] = []
    for line in lines:
        if line.strip():
            pieces.append(line)
        else:
            yield "".join(pieces)
            pieces = []
    yield "".join(pieces)


_PIECES: dict[str, Callable[[Iterable[str]], Iterable[str]]] = {
    "marker": _between_markers,
    "blank_line": _between_blank_lines,
    "line": iter,
    "file": lambda lines: ["".join(lines)],
}
