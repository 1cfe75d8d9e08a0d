"""Several sources as one, each with a weight."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from storyteller_ds.data.sources.source import Source
from storyteller_ds.errors import DataError


@dataclass(frozen=True)
class Mixture:
    """The documents of one source after the other, each source as often as its weight says.

    With a weight of 2.3, all documents come twice, and then three in ten of them once more: those with the lowest
    hashes, the same ones in every epoch. Training draws its sequences from all of the text in random order, so the
    order of the sources does not matter.
    """

    parts: tuple[tuple[Source, float], ...]

    @property
    def name(self) -> str:
        """The names of the sources, with the weights that are not 1."""
        return " + ".join(source.name + (f" x {weight:g}" if weight != 1 else "") for source, weight in self.parts)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the sources' fingerprints and the weights."""
        parts = "/".join(f"{source.fingerprint}*{weight!r}" for source, weight in self.parts)
        return hashlib.sha256(f"storyteller mixture 1/{parts}".encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """The documents of the first source, as often as it is read, then those of the next.

        Raises DataError as the sources do, and when nothing is drawn from one.
        """
        for source, weight in self.parts:
            is_drawn = False
            whole, part = divmod(weight, 1)
            for _ in range(int(whole)):
                for document in source.documents():
                    is_drawn = True
                    yield document
            for document in source.documents() if part else ():
                if _draw(document) < part:
                    is_drawn = True
                    yield document
            if not is_drawn:
                raise DataError(
                    f"nothing of {source.name} is read with its weight of {weight:g}; raise it, or leave it out"
                )

    def remarks(self) -> list[str]:
        """The remarks of the sources."""
        return [line for source, _ in self.parts for line in source.remarks()]


def _draw(document: str) -> float:
    """A number in [0, 1) that depends on the text alone; not the one that decides which documents are held out."""
    digest = hashlib.sha256(b"weight/" + document.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
