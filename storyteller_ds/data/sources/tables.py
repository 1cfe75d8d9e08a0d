"""Recognizes JSON and CSV by their content.

Prose may begin with a bracket, have a quotation in every line and be full of commas, so more evidence is needed.
"""

import csv
import io
import json
import re
from typing import Literal

ROWS = 50
"""Number of rows of CSV that are read."""
_COLUMN = re.compile(r"[^\W\d][\w-]*( [\w-]+){0,2}")
"""A column name: up to three words, no punctuation."""
_COLUMN_CHARACTERS = 30
_CUT_CHARACTERS = 20
"""JSON that was cut off has its error at most this far from its end, or in a string that does not end."""


def recognize_table(text: str, is_whole: bool) -> str | None:
    """JSON (also one value per line), CSV or TSV; None for prose.

    Args:
        text: the beginning of a file.
        is_whole: whether it is all of the file.
    """
    if _is_json(text.strip(), is_whole):
        return "JSON"
    return next((what for delimiter, what in _DELIMITERS.items() if _is_csv(text.strip(), is_whole, delimiter)), None)


_DELIMITERS = {",": "CSV", ";": "CSV", "\t": "TSV"}


def csv_delimiter(text: str, is_whole: bool) -> str | None:
    """What separates the fields of a text that is CSV or TSV; None: it looks like neither."""
    return next((delimiter for delimiter in _DELIMITERS if _is_csv(text.strip(), is_whole, delimiter)), None)


def _is_json(text: str, is_whole: bool) -> bool:
    if not text.startswith(("{", "[")):
        return False
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
    except json.JSONDecodeError as error:
        return not is_whole and is_cut(error, text)
    except (ValueError, RecursionError):  # a number or nested brackets that are too long
        return False
    # [1] may begin a story.
    return bool(value) and (isinstance(value, dict) or end == len(text))


def is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether text that is not JSON may be the beginning of JSON."""
    return error.msg.startswith("Unterminated") or error.pos > len(text) - _CUT_CHARACTERS


def _is_csv(text: str, is_whole: bool, delimiter: str) -> bool:
    rows = _rows(text, is_whole, delimiter)
    if len(rows) < 2 or len({len(row) for row in rows}) > 1:
        return False
    header, *others = rows
    quoted = text.count('"') >= 2 * len(others)
    if len(header) == 1:
        # No prose has one lower-case word as its first line and quotations in all others.
        return delimiter == "," and re.fullmatch("[a-z_]+", header[0]) is not None and quoted
    # In prose, a space follows what could be a delimiter.
    is_tight = not any(field.startswith(" ") for row in rows for field in row)
    return is_tight and (names_columns(header) or (len(others) > 1 and (quoted or delimiter == "\t")))


def csv_quoting(text: str, is_whole: bool, delimiter: str) -> Literal[0, 3]:
    """Whether quotation marks enclose fields (csv.QUOTE_MINIMAL) or are part of them (csv.QUOTE_NONE).

    Between tabs, they can be either: programs that write TSV quote fields with line breaks, or none at all. They
    enclose fields if all rows then have the same number of fields.
    """
    if delimiter == "\t":
        begins_field = text.startswith('"') or '\t"' in text or '\n"' in text
        rows = _read_rows(text, is_whole, delimiter, csv.QUOTE_MINIMAL) if begins_field else []
        if len(rows) < 2 or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
            return csv.QUOTE_NONE
    return csv.QUOTE_MINIMAL


def _rows(text: str, is_whole: bool, delimiter: str) -> list[list[str]]:
    """The first complete rows; none if the text breaks the rules of CSV."""
    return _read_rows(text, is_whole, delimiter, csv_quoting(text, is_whole, delimiter))


def _read_rows(text: str, is_whole: bool, delimiter: str, quoting: Literal[0, 3]) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows.append(row)
            if len(rows) == ROWS:
                return rows
    except csv.Error as error:
        return rows if not is_whole and "unexpected end" in str(error) else []
    return rows if is_whole else rows[:-1]


def names_columns(header: list[str]) -> bool:
    """Whether a row can be a header; the name of the first column, an index, may be empty."""
    names = header[1:] if header[0] == "" else header
    return len(set(names)) == len(names) and all(
        len(name) <= _COLUMN_CHARACTERS and _COLUMN.fullmatch(name) for name in names
    )
