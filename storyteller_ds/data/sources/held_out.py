"""A source split in two: what is trained on, and what is held out for validation."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

from storyteller_ds.data.prompted import PromptedStory
from storyteller_ds.data.sources.files import FilesSource
from storyteller_ds.data.sources.source import LOOKED_AT, Source
from storyteller_ds.data.sources.text_folder import TextFolderSource
from storyteller_ds.errors import DataError


@dataclass(frozen=True)
class HeldOutPart:
    """The documents of a source whose hash falls below a fraction, or all the others.

    The hash is of the document's own text: the same text is always on the same side, so that nothing
    in the validation part is trained on, however often it is repeated. If a source has only one document, the end of
    that is held out.
    """

    source: Source
    fraction: float
    part: Literal["kept", "held_out"]

    @property
    def name(self) -> str:
        """The source's name and which part of it."""
        if self.part == "kept":
            return f"{self.source.name} ({100 * (1 - self.fraction):.3g} % of the documents)"
        return f"{self.source.name} (held-out {self._percent} of the documents)"

    @property
    def fingerprint(self) -> str:
        """sha256 of the source's fingerprint, the fraction and the part."""
        return hashlib.sha256(f"{self.source.fingerprint}/{self.fraction}/{self.part}".encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """The documents of this part, in the source's order."""
        documents = self.source.documents()
        first = list(islice(documents, 2))
        if len(first) == 1 and (cut := _cut(first[0], self.fraction)) is not None:
            yield first[0][:cut].strip() if self.part == "kept" else first[0][cut:].strip()
            return
        for document in chain(first, documents):
            if self._is_held_out(document) == (self.part == "held_out"):
                yield document

    def remarks(self) -> list[str]:
        """The remarks of the source, and what is held out of single documents.

        Raises DataError if there are so few documents that all of them are on one side.
        """
        remarks = self.source.remarks()
        if [*map(self._is_cut, islice(self.source.documents(), 2))] == [True]:
            return [*remarks, f"the last {self._percent} of {self.source.name}, one document, are held out"]
        first = list(islice(self.source.documents(), LOOKED_AT))
        held_out = sum(map(self._is_held_out, first))
        if len(first) < LOOKED_AT and held_out in (0, len(first)):
            if remarks and len(first) == 1:  # the file was not split as intended: more text does not help
                raise DataError(f"nothing can be held out of {self.source.name} for validation: {remarks[-1]}")
            count, side = f"{len(first):,} document{'s'[: len(first) > 1]}", "all" if held_out else "none"
            if not first:
                raise DataError(f"{self.source.name} has no story; put some in")
            raise DataError(
                f"{self.source.name} has {count}, of which {side} fell into the held-out {self._percent}; use more "
                f"text, {self._other_fraction(first)}, or name another text with data.validation"
                + (f" ({remarks[-1]})" if remarks else "")
            )
        return remarks

    def _is_cut(self, document: str) -> bool:
        return _cut(document, self.fraction) is not None

    @property
    def _percent(self) -> str:
        return f"{100 * self.fraction:.3g} %"

    def _is_held_out(self, document: str) -> bool:
        return _draw(document) < self.fraction

    def _other_fraction(self, documents: Sequence[str]) -> str:
        """Which data.validation_fraction helps with so few documents."""
        draws = [_draw(document) for document in documents]
        for fraction in (0.05, 0.1, 0.2, 0.3, 0.5):
            if 0 < (held_out := sum(draw < fraction for draw in draws)) < len(draws):
                return f"set data.validation_fraction={fraction:g}, which holds out {held_out:,} of them"
        return "change data.validation_fraction"


@dataclass(frozen=True)
class PartOfEach:
    """The end of each of several text files, or everything before it; tables are split as in HeldOutPart.

    For data.split=none, where a file is one document. A file that cannot be cut goes to one side, by its hash.
    """

    source: TextFolderSource | FilesSource
    fraction: float
    part: Literal["kept", "held_out"]

    @property
    def name(self) -> str:
        """The source's name and which part of it."""
        which = "but" if self.part == "kept" else "held out:"
        return f"{self.source.name} ({which} the last {100 * self.fraction:.3g} % of each)"

    @property
    def fingerprint(self) -> str:
        """sha256 of the source's fingerprint (which includes data.split), the fraction and the part."""
        return hashlib.sha256(f"{self.source.fingerprint}/{self.fraction}/{self.part}".encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """The documents of this part, file by file."""
        for file in self.source.files:
            yield from HeldOutPart(file, self.fraction, self.part).documents()

    def remarks(self) -> list[str]:
        """The remarks of the source, and what is held out of single documents.

        Raises DataError if this part has no document.
        """
        if next(self.documents(), None) is None:
            raise DataError(
                f"{self.name} is without a document; use more text, change data.validation_fraction, or name another "
                "text with data.validation"
            )
        each = f"the last {100 * self.fraction:.3g} % of each text of {self.source.name} are held out"
        return [*self.source.remarks(), each]


def _draw(document: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64


def _cut(document: str, fraction: float) -> int | None:
    """Where the last part of a document begins: after a paragraph, a line or a sentence, close to its fraction.

    None: there is no such place, or the beginning is a prompt, which both parts would need.
    """
    if isinstance(document, PromptedStory):
        return None
    wanted = round((1 - fraction) * len(document))
    nearest = round(fraction * len(document) / 2)
    for end in (r"\n\s*\n", r"\n", r"[.!?]\S?\s"):
        places = [found.end() for found in re.finditer(end, document[wanted - nearest : wanted + nearest])]
        if places:
            return min((wanted - nearest + place for place in places), key=lambda place: abs(place - wanted))
    return None
