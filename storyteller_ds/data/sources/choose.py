"""From data.source and data.validation to the sources that they name."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.sources.builtin import BuiltinSource
from storyteller_ds.data.sources.huggingface import HuggingFaceSource
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.sources.text_file import TextFileSource

BUILTIN_VALIDATION_PART = 20
"""One built-in validation story for so many training stories."""

_TEXT_SUFFIXES = (".txt", ".text", ".md")


class Sources(NamedTuple):
    """What to train on, and what to validate on."""

    train: Source
    validation: Source


@dataclass(frozen=True)
class HeldOutPart:
    """The documents of a source whose hash falls below a fraction, or all the others.

    The hash is of the document's own text: the same text is always on the same side, so that nothing
    in the validation part was trained on, however often it is repeated.
    """

    source: Source
    fraction: float
    part: Literal["kept", "held_out"]

    @property
    def name(self) -> str:
        """The source's name and which part of it."""
        return f"{self.source.name} ({self.part.replace('_', ' ')}, {self.fraction:g} of the documents)"

    @property
    def fingerprint(self) -> str:
        """sha256 of the source's fingerprint, the fraction and the part."""
        return hashlib.sha256(f"{self.source.fingerprint}/{self.fraction}/{self.part}".encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """The documents of this part, in the source's order."""
        for document in self.source.documents():
            digest = hashlib.sha256(document.encode()).digest()
            is_held_out = int.from_bytes(digest[:8], "big") / 2**64 < self.fraction
            if is_held_out == (self.part == "held_out"):
                yield document


def choose_sources(data: DataConfig) -> Sources:
    """The sources of a run.

    Raises:
        DataError: one of them cannot exist.
    """
    train = _open(data, data.source, "train")
    if data.validation is not None:
        return Sources(train, _open(data, data.validation, "validation"))
    if isinstance(train, TextFileSource):
        return Sources(
            HeldOutPart(train, data.validation_fraction, "kept"),
            HeldOutPart(train, data.validation_fraction, "held_out"),
        )
    return Sources(train, _open(data, data.source, "validation"))


def _open(data: DataConfig, name: str, split: Literal["train", "validation"]) -> Source:
    if name == "builtin":
        train = data.builtin_stories
        return BuiltinSource(split, train if split == "train" else -(-train // BUILTIN_VALIDATION_PART))
    path = Path(name)
    if path.is_dir() or not (path.exists() or name.startswith((".", "/", "~")) or path.suffix in _TEXT_SUFFIXES):
        return HuggingFaceSource(
            dataset=name,
            split=split,
            revision=data.revision,
            text_field=data.text_field,
            streaming=data.streaming,
            max_documents=data.max_documents if split == "train" else None,
        )
    return TextFileSource(path.expanduser())
