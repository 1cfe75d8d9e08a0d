"""What every source of documents offers to the rest of the pipeline."""

from collections.abc import Iterator
from typing import Protocol

from storyteller_ds.errors import DataError

LOOKED_AT = 10_000
"""Documents at the beginning of a source that are read for its remarks."""
LONGEST = 1 << 24
"""A longer line, row or document is not a story: memory would have to hold it, its tokens and more (characters)."""


class Source(Protocol):
    """An ordered collection of documents that can be read as often as needed."""

    @property
    def name(self) -> str:
        """The source's name in messages and reports."""
        ...

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex: the same fingerprint means the same documents in the same order.

        Raises DataError when the source cannot be read.
        """
        ...

    def documents(self) -> Iterator[str]:
        """Yield each document, without surrounding white space and never empty.

        Raises DataError, at the first document or later, when the source cannot be read.
        """
        ...

    def remarks(self) -> list[str]:
        """Notes about how the source is read, one line each, based on its beginning only.

        Raises DataError when the source cannot be read, or cannot be used.
        """
        ...


def too_long(what: str, fix: str) -> DataError:
    """The error about a line, a row or a document that is too long.

    Args:
        what: what it is, and where.
        fix: how to split it into several.
    """
    return DataError(f"{what} has more than {LONGEST:,} characters, which no story has; {fix}")
