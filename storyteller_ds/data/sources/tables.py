"""Recognises JSON and CSV by their content.

Prose may begin with a bracket, have a quotation in every line and be full of commas: more evidence is needed.
"""

import csv
import io
import json
import re
from typing import Any, Literal, NamedTuple

ROWS = 50
"""Rows of CSV that are read."""
_COLUMN = re.compile(r"[^\W\d][\w-]*( [\w-]+){0,2}")
"""A name of a column: up to three words, no punctuation."""
_COLUMN_CHARACTERS = 30


class Table(NamedTuple):
    """What a text is, where it is data."""

    what: str
    suffix: str
    """The usual one of such files."""
    column: str | None
    """The one with the longest text in the first row; None if no row has a text."""


def recognise_table(text: str, is_whole: bool) -> Table | None:
    """JSON, JSON Lines, CSV or TSV; None for prose.

    Args:
        text: the beginning of a file.
        is_whole: it is all of the file.
    """
    return _json(text, is_whole) or _csv(text, is_whole)


def _json(text: str, is_whole: bool) -> Table | None:
    text = text.strip()
    if not text.startswith(("{", "[")):
        return None
    try:
        value, end = _decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        was_cut = not is_whole and (error.msg.startswith("Unterminated") or error.pos > len(text) - _CUT_CHARACTERS)
        return Table("JSON", ".json", _first_column(text)) if was_cut else None
    except (ValueError, RecursionError):  # a number or brackets without end
        return None
    more = text[end:].lstrip()
    if value and isinstance(value, dict):
        return Table("JSON Lines", ".jsonl", _longest(value)) if more.startswith("{") else Table("JSON", ".json", None)
    # [1] may begin a story.
    return Table("JSON", ".json", _first_column(text)) if value and not more else None


_decoder = json.JSONDecoder(strict=False)
_CUT_CHARACTERS = 20
"""A beginning of JSON that was cut is wrong at most so far from its end, or within a text that does not end."""


def _first_column(text: str) -> str | None:
    """The column with the longest text in the first row of an array, which may be cut further down."""
    try:
        row, _ = _decoder.raw_decode(text[1:].lstrip())
    except ValueError:
        return None
    return _longest(row) if text.startswith("[") and isinstance(row, dict) else None


def _longest(row: dict[str, Any]) -> str | None:
    texts = {name: len(value) for name, value in row.items() if isinstance(value, str)}
    return max(texts, key=texts.__getitem__, default=None)


def _csv(text: str, is_whole: bool) -> Table | None:
    for delimiter, what in ((",", "CSV"), (";", "CSV with semicolons"), ("\t", "TSV")):
        rows = _rows(text, is_whole, delimiter)
        header, *others = rows or [[]]
        widths = {len(row) for row in rows}
        if not others or len(widths) > 1:
            continue
        quoted = text.count('"') >= 2 * len(others)
        if len(header) == 1:
            # No prose has one small word as its first line, and quotations in all others.
            is_table = delimiter == "," and re.fullmatch("[a-z_]+", header[0]) is not None and quoted
        else:
            # In prose, a space follows what could be a delimiter.
            is_tight = not any(field.startswith(" ") for row in rows for field in row)
            is_table = is_tight and (_names_columns(header) or (len(others) > 1 and (quoted or delimiter == "\t")))
        if is_table:
            # The library that reads folders of CSV expects commas.
            has_names = delimiter != ";" and (len(header) == 1 or _names_columns(header))
            column = max(zip(header, others[0], strict=True), key=lambda each: len(each[1]))[0]
            return Table(what, ".tsv" if delimiter == "\t" else ".csv", column if has_names else None)
    return None


def _rows(text: str, is_whole: bool, delimiter: str) -> list[list[str]]:
    """The first rows that are whole; none if the text breaks the rules of CSV."""
    lines = io.StringIO(text.strip(), newline="")
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows.append(row)
            if len(rows) == ROWS:
                return rows
    except csv.Error as error:
        return rows if not is_whole and "unexpected end" in str(error) else []
    return rows if is_whole else rows[:-1]


def _names_columns(header: list[str]) -> bool:
    """Whether a row can be the names of columns; the first of them, an index, may have none."""
    names = header[1:] if header[0] == "" else header
    return len(set(names)) == len(names) and all(
        len(name) <= _COLUMN_CHARACTERS and _COLUMN.fullmatch(name) for name in names
    )
