"""Documents out of the files that a pattern names, such as `stories/*.txt`."""

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from storyteller_ds.data.sources.table_file import TableFileSource
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.errors import DataError

# Part of the fingerprint: raised whenever the same files would give other documents.
FORMAT = b"storyteller files 1\n"
_REMARKS = 3
"""Files whose remarks are given."""


def is_pattern(path: Path) -> bool:
    """Whether a path that does not exist is a pattern."""
    return glob.has_magic(str(path)) and not path.exists()


def matching_files(pattern: Path) -> list[Path]:
    """The files of a pattern, in the order of their paths; `**` stands for folders of any depth.

    Raises:
        DataError: there is none.
    """
    # Path.glob takes hidden files, too.
    paths = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    files = [path for path in paths if path.is_file()]
    if not files:
        raise DataError(f"no file is called {pattern}; check the pattern, or give a folder")
    return files


@dataclass(frozen=True)
class FilesSource:
    """Several text files and tables, one after the other."""

    pattern: str
    """As it was given."""
    files: tuple[TableFileSource | TextFileSource, ...]

    @property
    def name(self) -> str:
        """The pattern, and how many files it has."""
        return f"{self.pattern} ({len(self.files):,} file{'s' if len(self.files) > 1 else ''})"

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the files' contents in their order, wherever they lie; reads all of them.

        Raises DataError when one cannot be read; names it.
        """
        digest = hashlib.sha256(FORMAT)
        for file in self.files:
            digest.update(bytes.fromhex(file.fingerprint))
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """The documents of one file after the other.

        Raises DataError as they do, and names the file.
        """
        for file in self.files:
            yield from file.documents()

    def remarks(self) -> list[str]:
        """Those of the first files."""
        return [remark for file in self.files[:_REMARKS] for remark in file.remarks()]
