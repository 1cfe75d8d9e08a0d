"""Documents from several local files, given as a folder or a pattern such as `stories/*.txt`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

from storyteller_ds.data.sources.source import LOOKED_AT
from storyteller_ds.data.sources.story_ends import Ends, described
from storyteller_ds.data.sources.table_file import TableFileSource
from storyteller_ds.data.sources.text_file import TextFileSource

# Part of the fingerprint: raise it whenever the same files would give different documents.
FORMAT = b"storyteller files 1\n"
_REMARKS = 3
"""Number of remarks about tables that are given."""


@dataclass(frozen=True)
class FilesSource:
    """Several text files and tables, one after the other.

    Each is read as it would be alone, except that several texts are one story each if none of them has a marker and
    data.split does not say where stories end.
    """

    what: str
    """The folder or pattern."""
    files: tuple[TableFileSource | TextFileSource, ...]
    format: bytes = FORMAT

    @property
    def name(self) -> str:
        """Where the files are from, and how many there are."""
        return f"{self.what} ({self.count})"

    @property
    def count(self) -> str:
        """The number of files, in words."""
        return f"{len(self.files):,} file{'s' if len(self.files) > 1 else ''}"

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the files' contents in order, regardless of their paths; reads all of them.

        Raises DataError when one cannot be read, and names it.
        """
        # All are read first: where stories end is decided for each file alone, then for all of them together.
        digest, alone = hashlib.sha256(self.format), [file.fingerprint for file in self.files]
        for file, fingerprint in zip(self.files, alone, strict=True):
            together = file.fingerprint_of(self._ends(file)) if isinstance(file, TextFileSource) else fingerprint
            digest.update(bytes.fromhex(together))
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """The documents of one file after the other.

        Raises DataError as the single files do, and names the file.
        """
        for file in self.files:
            yield from self._documents(file)

    def remarks(self) -> list[str]:
        """Remarks about the first tables, and where the documents of texts end, unless that was chosen."""
        if len(self.files) == 1:
            return self.files[0].remarks()
        lines = [line for file in self.files if isinstance(file, TableFileSource) for line in file.remarks()]
        if len(lines) > _REMARKS:
            lines[_REMARKS:] = [f"{len(lines) - _REMARKS:,} more lines about other tables of {self.what}"]
        chosen_for = [file for file in self._texts if file.split == "auto"]
        for ends in dict.fromkeys(map(self._ends, chosen_for)):
            alike = [file for file in chosen_for if self._ends(file) == ends]
            documents = list(islice(chain.from_iterable(map(self._documents, alike)), LOOKED_AT))
            if len(documents) > 1:
                of = self.name if len(alike) == len(self.files) else f"{len(alike):,} files of {self.name}"
                of = alike[0].name if len(alike) == 1 else of
                lines.append(described(of, documents, ends))
        return lines

    def _documents(self, file: TableFileSource | TextFileSource) -> Iterator[str]:
        return file.documents_of(self._ends(file)) if isinstance(file, TextFileSource) else file.documents()

    def _ends(self, file: TextFileSource) -> Ends:
        return "file" if self._is_a_story_each else file.ends

    @property
    def _texts(self) -> list[TextFileSource]:
        return [file for file in self.files if isinstance(file, TextFileSource)]

    @cached_property
    def _is_a_story_each(self) -> bool:
        texts = self._texts
        return len(texts) > 1 and all(file.split == "auto" and file.ends != "marker" for file in texts)
