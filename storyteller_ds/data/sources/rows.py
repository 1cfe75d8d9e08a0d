"""The rows of a table in one file, one by one: JSON, JSON Lines, CSV, TSV and Parquet.

A row is a mapping of its fields. What is not a row comes as Malformed, followed by the rows after it where they can be
told apart (not after malformed JSON that is not in lines).
"""

import csv
import functools
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from storyteller_ds.data.sources.source import LONGEST, too_long
from storyteller_ds.data.sources.tables import csv_delimiter, csv_quoting, is_cut, names_columns
from storyteller_ds.data.sources.utf8_stream import opened_as_utf8
from storyteller_ds.errors import DataError

_ONLY = "text"
"""Field for a value that is not an object."""
_READ_CHARACTERS = 1 << 18
TOO_LONG_ROW = "cut it into stories, a row each"
_SPACE, _SPACE_OR_COMMA = re.compile(r"[ \t\n\r]*"), re.compile(r"[ \t\n\r,]*")


@dataclass(frozen=True)
class Malformed:
    """Takes the place of a row that cannot be read."""

    where: str
    """Such as `line 17`."""
    why: str


Rows = Iterator[Mapping[str, Any] | Malformed]


def rows_of(path: Path, kind: str, encoding: str | None, wanted: str) -> Rows:
    """The rows of a file, read piece by piece.

    Args:
        path: path of the file.
        kind: JSON, JSON Lines, CSV, TSV or Parquet.
        encoding: as data.encoding.
        wanted: a field; a first row of CSV that has it is the header, whatever its names look like.

    Raises:
        DataError: it is damaged, has a row that is too long to be a story, or needs a library that is missing.
        UntrustedFileError, OSError: see opened_as_utf8.
    """
    if kind == "Parquet":
        yield from _parquet_rows(path)
        return
    with opened_as_utf8(path, encoding) as file:
        try:
            if kind.startswith("JSON"):
                yield from _json_rows(file, path, has_to_be_lines=kind == "JSON Lines")
            else:
                yield from _csv_rows(file, path, "\t" if kind == "TSV" else ",", wanted)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x}; set data.encoding=windows-1252, or what "
                "it has"
            ) from None


def _json_rows(file: BinaryIO, path: Path, has_to_be_lines: bool) -> Rows:
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    if has_to_be_lines:
        return _json_lines("", text, path)
    first = text.readline(_READ_CHARACTERS)
    while first and not first.strip():
        first = text.readline(_READ_CHARACTERS)
    try:
        json.loads(first)
        is_lines = not first.lstrip().startswith("[")
    except ValueError:
        is_lines = False
    return _json_lines(first, text, path) if is_lines else _json_values(first, text, path)


def _json_lines(first: str, text: io.TextIOWrapper, path: Path) -> Rows:
    begun = [first] if first else []
    for number, line in enumerate(itertools.chain(begun, _rest(text, path, len(begun))), start=1):
        if not line.strip():
            continue
        try:
            yield _row(json.loads(line, strict=False))
        except (ValueError, RecursionError) as error:
            yield Malformed(f"line {number:,}", f"not JSON: {error}")


def _json_values(begun: str, text: io.TextIOWrapper, path: Path) -> Rows:
    """The values of an array, or values that follow each other; never all of them are in memory."""
    decoder, between, count = json.JSONDecoder(strict=False), _SPACE, 0
    left, at, is_over = begun.lstrip(), 0, False
    is_array = left.startswith("[")
    if is_array:
        at, between = 1, _SPACE_OR_COMMA
    while True:
        at = _end_of(between, left, at)
        if is_array and left.startswith("]", at):
            return
        try:
            value, end = decoder.raw_decode(left, at)
            if end < len(left) or is_over:  # at the end, a number could go on
                count, at = count + 1, end
                yield _row(value)
                continue
        except (ValueError, RecursionError) as error:
            is_malformed = isinstance(error, json.JSONDecodeError) and not is_cut(error, left)
            if is_over or is_malformed:
                if at < len(left) or is_array:
                    yield Malformed(f"value {count + 1:,}", f"not JSON: {error}")
                return
        left, at = left[at:], 0
        if len(left) > LONGEST:
            raise too_long(f"value {count + 1:,} of {path}", TOO_LONG_ROW)
        more = text.read(max(_READ_CHARACTERS, len(left)))  # doubles each time, because long values are parsed again
        is_over, left = not more, left + more


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a match that begins at `at` ends; `at` if there is none."""
    found = pattern.match(text, at)
    return found.end() if found else at


def _row(value: Any) -> Mapping[str, Any] | Malformed:
    return value if isinstance(value, dict) else {_ONLY: value}


def _csv_rows(file: BinaryIO, path: Path, usual: str, wanted: str) -> Rows:
    csv.field_size_limit(LONGEST)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    head = text.read(_READ_CHARACTERS)
    is_whole = len(head) < _READ_CHARACTERS
    delimiter = csv_delimiter(head, is_whole) or usual
    quoting = csv_quoting(head, is_whole, delimiter)
    # strict: otherwise, an unclosed quote would make one field of everything after it.
    reader = csv.reader(_lines(head, text, path), delimiter=delimiter, quoting=quoting, strict=True)
    names: list[str] | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise too_long(f"a field that begins before line {reader.line_num:,} of {path}", TOO_LONG_ROW) from None
            yield Malformed(f"line {reader.line_num:,}", f"not a row of CSV: {error}")
            continue
        if names is None:
            has_names = names_columns(row) or wanted in row
            names = [name or "index" for name in row] if has_names else [f"column {i + 1}" for i in range(len(row))]
            if has_names:
                continue
        if len(row) == len(names):
            yield dict(zip(names, row, strict=True))
        elif row:  # csv gives an empty line as a row without fields
            yield Malformed(f"line {reader.line_num:,}", f"a row of {len(row)} fields in place of {len(names)}")


def _lines(head: str, text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """The lines of a text whose beginning has been read; only line feeds and carriage returns end one."""
    *lines, last = [*io.StringIO(head, newline="")] or [""]
    yield from lines
    rest = _rest(text, path, len(lines))
    yield last + next(rest, "")
    yield from rest


def _rest(text: io.TextIOWrapper, path: Path, before: int) -> Iterator[str]:
    """The remaining lines, of which `before` have been read."""
    for number, line in enumerate(iter(functools.partial(text.readline, LONGEST + 1), ""), start=before + 1):
        if len(line) > LONGEST:
            raise too_long(f"line {number:,} of {path}", TOO_LONG_ROW)
        yield line


def _parquet_rows(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path} is Parquet; pip install 'storyteller_ds[hub]' to read it") from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; it is damaged or cut off, get it again") from None
