"""How a local file is read, and which source reads it."""

from dataclasses import dataclass
from pathlib import Path

from storyteller_ds.config.data import DataConfig, Split
from storyteller_ds.data.sources.file_kind import table_of
from storyteller_ds.data.sources.table_file import TableFileSource
from storyteller_ds.data.sources.text_file import TextFileSource


@dataclass(frozen=True)
class Reading:
    """The data.* settings for local files."""

    encoding: str | None = None
    split: Split = "auto"
    text_field: str = DataConfig.model_fields["text_field"].default
    bad_rows: float = 0.0
    prompt: str | None = None

    @classmethod
    def of(cls, data: DataConfig) -> "Reading":
        """The settings of a run."""
        return cls(data.encoding, data.split, data.text_field, data.bad_rows, data.prompt)


PLAIN = Reading()
"""How files are read if nothing is set."""


def open_file(path: Path, reading: Reading = PLAIN) -> TableFileSource | TextFileSource:
    """The source that reads a file, by its content; an unreadable file gets a TextFileSource, which says why."""
    kind = table_of(path, reading.encoding)
    if kind is None:
        return TextFileSource(path, reading.encoding, reading.split)
    return TableFileSource(path, kind, reading.text_field, reading.encoding, reading.bad_rows, reading.prompt)
