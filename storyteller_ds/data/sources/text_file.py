"""Documents out of one text file of any size, read piece by piece."""

import codecs
import difflib
import hashlib
import io
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from storyteller_ds.data.sources.file_kind import conversion, nul_byte, refuse_other_than_text
from storyteller_ds.data.sources.source import LOOKED_AT
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
    """A UTF-8 file whose documents are separated by `<|endoftext|>` or, where it has none, by blank lines.

    CRLF and lone CR count as LF; byte order marks are dropped, also within, where files were joined. Memory
    use is that of the longest document, not of the file.
    """

    path: Path

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the content, wherever the file lies; reads the whole file, once.

        Raises DataError when the file is missing, empty, a folder, or cannot be read.
        """
        mark = codecs.BOM_UTF8
        digest, marks, start, window = hashlib.sha256(FORMAT), 0, b"", b""
        for chunk in _chunks(self.path):
            digest.update(chunk)
            start = (start + chunk[: len(mark)])[: len(mark)]
            window = window[1 - len(mark) :] + chunk
            marks += window.count(mark)
        if marks > (start == mark):
            digest.update(_MARKS_DROPPED)
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """Yield the documents in the order of the file.

        Raises DataError when the file is missing, a folder, unreadable, or without any document, and
        on reaching a byte that is not UTF-8.
        """
        found = False
        for document in documents_of(self.path):
            found = True
            yield document
        if not found:
            raise DataError(
                f"{self.path} has no document: it holds only white space and {MARKER} markers; "
                "put in stories separated by blank lines or markers"
            )

    def remarks(self) -> list[str]:
        """How blank lines have split a file without markers."""
        if has_marker(self.path):
            return []
        return [on_blank_lines(self.name, list(islice(self.documents(), LOOKED_AT)))]


def documents_of(path: Path) -> Iterator[str]:
    """The documents of a file, which may be none; raises DataError as TextFileSource does."""
    # Which rule holds is only known once the marker was seen or the whole file was searched, so
    # a file of blank-line documents is read twice rather than kept in memory.
    by_marker = has_marker(path)
    texts = _decoded(path)
    for piece in _between_markers(texts) if by_marker else _between_blank_lines(texts):
        document = piece.strip()
        if document:
            yield document


def has_marker(path: Path) -> bool:
    """Whether the documents of a file are those between markers."""
    return _contains(_chunks(path), MARKER.encode())


def on_blank_lines(name: str, documents: Sequence[str]) -> str:
    """How blank lines have split documents, and what helps if that is not what was meant.

    Args:
        name: where they are from.
        documents: the first LOOKED_AT of them, one or more.
    """
    words = statistics.median_low(len(document.split()) for document in documents)
    length = f"{words:,} word{'s' if words != 1 else ''}"
    if len(documents) == 1:
        command = f"sed G {shlex.quote(name)} > {shlex.quote(str(Path(name).with_suffix('.parted.txt')))}"
        each_line = f"; if each line is a story, `{command}` separates them" if "\n" in documents[0] else ""
        return (
            f"{name} is one document of {length}, for it has no blank line within and no {MARKER}; "
            f"put {MARKER} between its stories{each_line}"
        )
    first = "the first " if len(documents) == LOOKED_AT else ""
    advice = f"; put {MARKER} between stories that have blank lines within" if words < SHORT_WORDS else ""
    return f"{name}: {first}{len(documents):,} documents of {length} (median), split at blank lines{advice}"


def _chunks(path: Path) -> Iterator[bytes]:
    with _reading(path):
        if not path.exists():
            raise DataError(_missing(path))
        if path.is_dir():
            raise DataError(f"{path} is a folder, not a text file; name one file in it")
        if not path.is_file():
            raise DataError(f"{path} is not a regular file, and it must be read more than once; save it as one")
        refuse_other_than_text(path)
        with path.open("rb") as file:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                raise DataError(f"{path} is empty; put in stories separated by blank lines or {MARKER}")
            while chunk:
                if b"\0" in chunk:
                    raise nul_byte(path, file.tell() - len(chunk) + chunk.index(b"\0"))
                yield chunk
                chunk = file.read(CHUNK_BYTES)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UntrustedFileError as error:
        raise DataError(f"{error}; give a UTF-8 text file") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: permission denied; try `chmod u+r` on it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check the file and its disk") from error


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does its folder {folder}; check the path"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    near = difflib.get_close_matches(path.name, names, n=1)
    fix = f"did you mean {folder / near[0]}?" if near else f"check the path, or put the file into {folder}"
    if set(path.name) & set("*?["):
        fix = f"patterns are not expanded here; give the folder {folder}, of which all text files are read"
    return f"{path} does not exist; {fix}"


def _contains(chunks: Iterable[bytes], wanted: bytes) -> bool:
    carry = b""
    for chunk in chunks:
        window = carry + chunk
        if wanted in window:
            return True
        carry = window[-(len(wanted) - 1) :]
    return False


def _decoded(path: Path) -> Iterator[str]:
    """Yield the text with LF line ends and without byte order marks."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    # Between the chunks it keeps a CR whose LF may still come.
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    bytes_fed = 0

    def decode(chunk: bytes, final: bool) -> str:
        held_back = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            position = bytes_fed - held_back + error.start
            raise DataError(_not_utf8(path, position, error.object[error.start])) from error
        return newlines.decode(text.replace(_BYTE_ORDER_MARK, ""), final)

    for chunk in _chunks(path):
        yield decode(chunk, final=False)
        bytes_fed += len(chunk)
    yield decode(b"", final=True)


def _not_utf8(path: Path, position: int, value: int) -> str:
    # Counted only now, by a second reading, to keep the healthy path free of it. Latin-1 gives each
    # byte one character, so the line ends can be counted before the text is known to be UTF-8.
    newlines = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("latin-1")(), translate=True)
    lines_before = 0
    remaining = position
    for chunk in _chunks(path):
        lines_before += newlines.decode(chunk[:remaining]).count("\n")
        remaining -= len(chunk)
        if remaining <= 0:
            break
    lines_before += newlines.decode(b"", final=True).count("\n")
    where = f"byte 0x{value:02x} at position {position} (line {lines_before + 1})"
    return f"{path} is not UTF-8: {where}; {conversion(path, 'windows-1252')}"


def _between_markers(texts: Iterable[str]) -> Iterator[str]:
    # The last characters of each text may begin a marker, so they wait for the next one. Pieces are
    # joined only when a document ends: adding to a string would be quadratic in long documents.
    carry = ""
    pieces: list[str] = []
    for text in texts:
        *ended, rest = (carry + text).split(MARKER)
        for piece in ended:
            pieces.append(piece)
            yield "".join(pieces)
            pieces = []
        settled = max(0, len(rest) - len(MARKER) + 1)
        pieces.append(rest[:settled])
        carry = rest[settled:]
    yield "".join([*pieces, carry])


def _between_blank_lines(texts: Iterable[str]) -> Iterator[str]:
    lines: list[str] = []
    for line in _lines(texts):
        if line and not line.isspace():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    yield "\n".join(lines)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    pieces: list[str] = []
    for text in texts:
        first, *others = text.split("\n")
        pieces.append(first)
        for piece in others:
            yield "".join(pieces)
            pieces = [piece]
    yield "".join(pieces)
