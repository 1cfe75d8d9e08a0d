"""Documents from a folder of text files and tables."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

from storyteller_ds.data.sources.files import FilesSource
from storyteller_ds.data.sources.huggingface import FORMAT as FORMAT_OF_DATASETS
from storyteller_ds.data.sources.huggingface import file_hash
from storyteller_ds.data.sources.listing import (
    TABLE_SUFFIXES,
    TEXT_SUFFIXES,
    Listing,
    is_empty,
    list_folder,
    not_read,
    split_of,
    suffix_of,
)
from storyteller_ds.data.sources.reading import PLAIN, Reading, open_file
from storyteller_ds.data.sources.table_file import TableFileSource
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.errors import DataError

# Part of the fingerprint: raise it whenever the same files would give different documents.
FORMAT = b"storyteller text folder 1\n"
_READERS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
}
"""Readers of the `datasets` library, which reads files together if they have the same reader."""


@dataclass(frozen=True)
class TextFolderSource:
    """The text files and tables in a folder and below it, in the order of their relative paths; see FilesSource.

    If all files, or the folders that they are in, are named for splits, `split` chooses among them; otherwise, all of
    them are read. Hidden files, empty files, and files such as README.md and LICENSE are left out. A link must not lead
    out of the folder, so that a folder from somewhere else cannot name a file outside of it.

    Raises DataError on construction if there is nothing to read, or if it is not clear which files are in the split.
    """

    path: Path
    split: Literal["train", "validation"]
    reading: Reading = PLAIN
    max_documents: int | None = None
    """As data.max_documents."""

    def __post_init__(self) -> None:
        if links := self._listing.links:
            raise DataError(
                f"{links[0]} leads out of {self.path}, or to a folder, or nowhere; put the files there instead"
            )
        if None in self._by_split and self.has_split("validation"):
            named, other = self._by_split["validation"][0], self._by_split[None][0]
            raise DataError(
                f"{named} is named for a split and {other} is not; "
                "name all files for splits, such as train.txt and validation.txt, or none"
            )
        if not self._paths:
            which = f"text file for {self.split}" if self._has_splits else "text file"
            raise DataError(
                f"{self.path} has no {which} (*{', *'.join(TEXT_SUFFIXES)}; README and the like do not count, nor do "
                f"empty files) and no table (*{', *'.join(TABLE_SUFFIXES)}); put the stories there"
            )

    def has_split(self, split: str) -> bool:
        """Whether some files are named for this split."""
        return split in self._by_split

    @property
    def name(self) -> str:
        """The path as it was given, and which part of it is read."""
        return f"{self.path} ({self.split}, {self._read.count})" if self._has_splits else self._read.name

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the files' contents in order, regardless of their paths; reads all of them.

        Raises DataError when one cannot be read, and names it.
        """
        if (hashes := self._hashes_by_datasets()) is not None:
            asked = [FORMAT_OF_DATASETS, hashes, self._split_read, self.reading.text_field, self.max_documents]
            return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        limit = "" if self.max_documents is None else f"/{self.max_documents}"
        whole = self._read.fingerprint
        return hashlib.sha256(f"{whole}{limit}".encode()).hexdigest() if limit else whole

    def documents(self) -> Iterator[str]:
        """Yield the documents of one file after the other.

        Raises DataError as the sources of single files do, and names the file.
        """
        return islice(self._read.documents(), self.max_documents)

    def remarks(self) -> list[str]:
        """Which files are not read, and the remarks of those that are."""
        listing = self._listing
        unread = [path for path in (*listing.texts, *listing.others) if path not in self._named or is_empty(path)]
        if self._has_splits:
            unread += self._by_split.get("test", [])
        what = "empty files, files about the text, test files, and files that are neither text nor tables"
        return not_read(listing.about + sorted(unread), what) + self._read.remarks()

    @property
    def files(self) -> tuple[TableFileSource | TextFileSource, ...]:
        """The sources of its files."""
        return self._read.files

    @cached_property
    def _read(self) -> FilesSource:
        return FilesSource(str(self.path), tuple(open_file(path, self.reading) for path in self._paths), FORMAT)

    @cached_property
    def _listing(self) -> Listing:
        return list_folder(self.path)

    @cached_property
    def _named(self) -> list[Path]:
        """The files whose names suggest stories."""
        tables = self._listing.tables
        # A Markdown file next to tables is about them.
        texts = [path for path in self._listing.texts if not (tables and suffix_of(path) == ".md")]
        return sorted([*texts, *tables], key=lambda path: path.parts)

    @cached_property
    def _by_split(self) -> dict[str | None, list[Path]]:
        """The files of each split, and under None those that are named for no split."""
        by_split: dict[str | None, list[Path]] = {}
        for path in self._named:
            by_split.setdefault(split_of(path.relative_to(self.path)), []).append(path)
        return by_split

    @property
    def _has_splits(self) -> bool:
        return None not in self._by_split and (self.has_split("train") or self.has_split("validation"))

    @property
    def _split_read(self) -> str:
        """The split whose files are read: train if none is for validation."""
        return "train" if self.split == "validation" and not self.has_split("validation") else self.split

    @cached_property
    def _paths(self) -> list[Path]:
        paths = self._by_split.get(self._split_read, []) if self._has_splits else self._named
        return [path for path in paths if not is_empty(path)]

    def _hashes_by_datasets(self) -> list[str] | None:
        """The hashes in the fingerprint from when `datasets` read folders of tables; None: it could not read this one.

        Its documents were the same, so a run can continue.
        """
        readers = {_READERS.get(path.suffix) for path in self._paths}  # a packed file has none
        if len(readers) > 1 or None in readers or self.reading.encoding is not None or self.reading.prompt is not None:
            return None
        if not all(isinstance(file, TableFileSource) and file.field == self.reading.text_field for file in self.files):
            return None
        card = self.path / "README.md"
        return ["local folder", *map(file_hash, ([card] if card.is_file() else []) + self._paths)]
