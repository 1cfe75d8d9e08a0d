"""Documents from one text file of any size, read piece by piece."""

import codecs
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from storyteller_ds.config.data import Split
from storyteller_ds.config.files import nearest_sibling
from storyteller_ds.data.sources.file_kind import not_utf8, nul_bytes, refuse_other_than_text
from storyteller_ds.data.sources.source import LONGEST, LOOKED_AT
from storyteller_ds.data.sources.story_ends import (
    BYTE_ORDER_MARK,
    MARKER,
    Ends,
    Evidence,
    by_lines,
    described,
    long_line,
    pieces,
)
from storyteller_ds.data.sources.utf8_stream import opened_as_utf8
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError

CHUNK_BYTES = 1 << 16
# Part of the fingerprint: raise it whenever the same bytes would be cut into different documents.
FORMAT = b"storyteller text file 1\n"
_MARKS_DROPPED = b"byte order marks within are dropped"
"""Part of the fingerprint of files that have any; they used to be left in the text."""


class _Survey(NamedTuple):
    """What reading all of a file once says about it."""

    digest: Any
    """sha256 so far."""
    evidence: Evidence


@dataclass(frozen=True)
class TextFileSource:
    """A text file, packed or not, whose documents end where `split` says; auto: where its content says.

    CRLF and lone CR count as LF; byte order marks are dropped, even within the file, where files were joined.
    Memory use depends on the longest document, not on the file.
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

    @property
    def fingerprint(self) -> str:
        """The sha256 of the text in UTF-8 and of where its documents end, whatever the path; reads all of it once.

        Raises DataError when the file is missing, empty, a folder, or cannot be read.
        """
        return self.fingerprint_of(self._survey.evidence.ends if self.split == "auto" else self.split)

    def fingerprint_of(self, ends: Ends) -> str:
        """The fingerprint if the documents end this way."""
        digest, evidence = self._survey.digest.copy(), self._survey.evidence
        # Auto used to mean the marker or else blank lines: a file that is still split as it was then keeps its
        # fingerprint.
        is_as_before = ends in ("marker", "blank_line") or (ends == "file" and not evidence.has_blank_line)
        if self.split != "auto" or not is_as_before:
            digest.update(f"split: {ends}".encode())
        return str(digest.hexdigest())

    @cached_property
    def ends(self) -> Ends:
        """Where the documents end: split or, if that is auto, what the content says; reads up to the first marker."""
        if self.split != "auto":
            return self.split
        if "_survey" in vars(self):  # all of it has been read
            return self._survey.evidence.ends
        evidence = Evidence()
        for chunk in _chunks(self.path, self.encoding):
            evidence.look_at(chunk)
            if evidence.has_marker:
                break
        else:
            evidence.look_at(b"")
        return evidence.ends

    def documents(self) -> Iterator[str]:
        """The documents in the order of the file; none if there are only white space and markers.

        Raises DataError when the file is missing, empty, a folder or unreadable, on reaching a byte that is not
        UTF-8, and on reaching a line or a document that is too long.
        """
        return self.documents_of(self.ends)

    def documents_of(self, ends: Ends) -> Iterator[str]:
        """The documents if they end this way."""
        for piece in pieces(_text(self.path, self.encoding, by_lines(ends)), ends, self.name):
            if document := piece.strip():
                yield document

    def remarks(self) -> list[str]:
        """Where the documents end, unless that was chosen."""
        if self.split != "auto":
            return []
        documents = list(islice(self.documents(), LOOKED_AT))
        return [described(self.name, documents, self.ends)] if documents else []

    @cached_property
    def _survey(self) -> _Survey:
        mark, evidence = codecs.BOM_UTF8, Evidence()
        digest, marks, start, window = hashlib.sha256(FORMAT), 0, b"", b""
        for chunk in _chunks(self.path, self.encoding):
            digest.update(chunk)
            start = (start + chunk[: len(mark)])[: len(mark)]
            window = window[1 - len(mark) :] + chunk
            marks += window.count(mark)
            evidence.look_at(chunk)
        evidence.look_at(b"")
        if marks > (start == mark):
            digest.update(_MARKS_DROPPED)
        return _Survey(digest, evidence)


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


def _text(path: Path, encoding: str | None, is_by_lines: bool) -> Iterator[str]:
    """The text without byte order marks, in lines with LF at their ends or in pieces of CHUNK_BYTES characters."""
    with _opened(path, encoding) as file:
        text = io.TextIOWrapper(file, encoding="utf-8")
        read = partial(text.readline, LONGEST + 1) if is_by_lines else partial(text.read, CHUNK_BYTES)
        try:
            for number, piece in enumerate(iter(read, ""), start=1):
                if "\0" in piece:
                    raise nul_bytes(path)
                if is_by_lines and len(piece) > LONGEST:
                    raise long_line(str(path), number)
                yield piece.replace(BYTE_ORDER_MARK, "")
        except UnicodeDecodeError as error:
            position = file.tell() - len(error.object) + error.start
            raise not_utf8(path, error.object[error.start], position) from error
