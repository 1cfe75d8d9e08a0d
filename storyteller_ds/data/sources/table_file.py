"""Documents from one file with a table: each is a text field of a row."""

import hashlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from storyteller_ds.config.data import DataConfig
from storyteller_ds.config.prompt_template import PromptTemplate
from storyteller_ds.data.prompted import document_of
from storyteller_ds.data.sources.rows import TOO_LONG_ROW, Malformed, rows_of
from storyteller_ds.data.sources.source import LONGEST, too_long
from storyteller_ds.data.sources.story_ends import MARKER
from storyteller_ds.data.sources.text_file import CHUNK_BYTES
from storyteller_ds.data.sources.utf8_stream import opened_as_utf8
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError
from storyteller_ds.user_paths import is_utf8

# Part of the fingerprint: raise it whenever the same rows would give different documents.
FORMAT = b"storyteller table 1\n"
_LOOKED_AT = 100
"""Number of rows that are used to choose the field."""
_USUAL = str(DataConfig.model_fields["text_field"].default)
_NAMES = ("story", "stories", "content", "body", "document", "passage", "tale", "output", "completion")
"""Names of the story field in other datasets, in the order in which they are tried."""
_A_STORY = 40
"""Least median length of a field that may hold stories, if no name says so (characters)."""


@dataclass(frozen=True)
class TableFileSource:
    """A file of JSON, JSON Lines, CSV, TSV or Parquet, packed or not; rows without text are left out."""

    path: Path
    kind: str
    """As in rows_of."""
    text_field: str
    """As data.text_field."""
    encoding: str | None = None
    bad_rows: float = 0.0
    """As data.bad_rows."""
    prompt: str | None = None
    """As data.prompt."""

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the content and of the field's name; reads the whole file, once.

        Raises DataError when the file cannot be read.
        """
        digest = hashlib.sha256(FORMAT + f"{self.kind}/{self.field}\n".encode())
        if self.prompt is not None:
            digest.update(f"prompt: {self.prompt}\n".encode())
        if self.bad_rows:  # a corpus prepared without bad rows must not be used if none are allowed
            digest.update(f"bad rows: {self.bad_rows}\n".encode())
        with self._reading(), opened_as_utf8(self.path, self.encoding) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """The texts in the order of the rows.

        Raises DataError when the file cannot be read or has no such field, and, at the end at the latest, when more of
        its rows are malformed than `bad_rows` allows.
        """
        read, bad, first = 0, 0, ""
        for read, row in enumerate(self._rows(), start=1):
            text, problem = self._text(row, read)
            if problem is not None:
                bad, first = bad + 1, first or problem
                if self.bad_rows == 0:
                    break
            elif text:
                yield text
        if bad > self.bad_rows * read:
            allowed = f", more than data.bad_rows={self.bad_rows:g} allows" if self.bad_rows else ""
            raise DataError(
                f"{self.path}: {first}{f' ({bad:,} of {read:,} rows are bad{allowed})' if allowed else ''}; fix it, or "
                "set data.bad_rows to the part of the rows that may be left out"
            )

    def remarks(self) -> list[str]:
        """The field, if it was not named, and what is left out.

        Raises DataError when the file cannot be read, or too much of it is malformed.
        """
        lines = []
        if self.field != self.text_field:
            lines.append(f"{self.path}: the stories are in its field {self.field!r} (data.text_field)")
        if self.bad_rows:
            bad = [
                problem
                for number, row in enumerate(self._rows(), start=1)
                if (problem := self._text(row, number)[1]) is not None
            ]
            if bad:
                lines.append(f"{self.path}: {len(bad):,} malformed rows are left out; the first: {bad[0]}")
        return lines

    @cached_property
    def field(self) -> str:
        """The field of the stories: text_field or, if it is missing and was not named, one that is chosen."""
        field = self._chosen_field()
        if field in self._template.fields:
            raise DataError(f"{self.path}: data.prompt has the story itself, {{{field}}}; leave it out")
        return field

    def _chosen_field(self) -> str:
        first = [row for row in islice(self._rows(), _LOOKED_AT) if not isinstance(row, Malformed)]
        names = list(dict.fromkeys(name for row in first for name in row))
        if not names:
            raise DataError(f"{self.path} has no row with a story; put some in")
        if unknown := next((name for name in self._template.fields if name not in names), None):
            raise DataError(
                f"{self.path} has no field {unknown!r} for data.prompt; write one of these into it: {', '.join(names)}"
            )
        if self.text_field in names:
            return self.text_field
        if self.text_field == _USUAL and (found := _field_of_stories(first, names)) is not None:
            return found
        raise DataError(
            f"{self.path} has no field {self.text_field!r}; set data.text_field to one of: {', '.join(names)}"
        )

    def _text(self, row: Mapping[str, Any] | Malformed, number: int) -> tuple[str | None, str | None]:
        """The document of a row, if it has one, and what is wrong with it, if anything."""
        if isinstance(row, Malformed):
            return None, f"{row.where} is {row.why}"
        text = row.get(self.field)
        if text is None:
            return None, None
        if not isinstance(text, str):
            return None, f"row {number:,} has {type(text).__name__} and no text in its field {self.field!r}"
        try:
            prompt = self._template.fill(row)
        except KeyError as error:
            return None, f"row {number:,} has no text in its field {error.args[0]!r}, which data.prompt has"
        whole = prompt + text
        if len(whole) > LONGEST:
            raise too_long(f"row {number:,} of {self.path}", TOO_LONG_ROW)
        if MARKER in whole:  # as in text files that were turned into one row per line
            return None, f"row {number:,} has {MARKER} within its text, where it would be learnt as any other word"
        if "\0" in whole or not is_utf8(whole):
            return None, f"row {number:,} has characters that no text has (NUL, half a surrogate pair)"
        return document_of(prompt, text), None

    @cached_property
    def _template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt or "")

    def _rows(self) -> Iterator[Mapping[str, Any] | Malformed]:
        with self._reading():
            yield from rows_of(self.path, self.kind, self.encoding, self.text_field)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except UntrustedFileError as error:
            raise DataError(f"{error}; give a file") from error
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{self.path} cannot be read: {reason}; check the file and its disk") from error


def _field_of_stories(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """The field that holds stories, by its name or by the length of its texts; None: none does."""
    lengths = {}
    for name in names:
        texts = [row[name] for row in rows if row.get(name) is not None]
        if texts and all(isinstance(text, str) for text in texts):
            lengths[name] = statistics.median_low(map(len, texts))
    usual = next((name for wanted in _NAMES for name in lengths if name.lower() == wanted), None)
    longest = max(lengths, key=lengths.__getitem__, default=None)
    return usual or (longest if longest is not None and lengths[longest] >= _A_STORY else None)
