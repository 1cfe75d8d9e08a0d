"""Documents out of a folder of text files, each of them split as a single file is."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

from storyteller_ds.config.data import Split
from storyteller_ds.data.sources.source import LOOKED_AT
from storyteller_ds.data.sources.text_file import TextFileSource, documents_of, has_marker, on_blank_lines
from storyteller_ds.data.sources.utf8_stream import PACKED_SUFFIXES
from storyteller_ds.errors import DataError

TEXT_SUFFIXES = (".txt", ".text", ".md")
# Part of the fingerprint: raised whenever the same files would give other documents.
FORMAT = b"storyteller text folder 1\n"

_ABOUT_THE_TEXT = re.compile(r"(readme|licen[cs]e|copying|provenance)\b.*|card\.(md|json)|card-\w+\.png", re.IGNORECASE)
"""Names of files about the stories; the card is what `storyteller preprocess` writes."""
_NAMED = 3
"""How many of the files that are not read are listed by name."""
_OF_A_DESKTOP = ("Thumbs.db", "desktop.ini", "__MACOSX")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    "test": "test",
}
_WORD = f"({'|'.join(_SPLITS)})"
_NAMED_FOR_A_SPLIT = re.compile(rf"(?:.*[-_. ])?{_WORD}(?:[-_. ]?\d+(?:-of-\d+)?)?|{_WORD}[-_.].*")
"""Such as train.txt, tiny_val.txt, train-00000-of-00002.txt, val_stories.txt, the folder validation."""


class Listing(NamedTuple):
    """All files below a folder, hidden ones left out, in the order of their relative paths."""

    texts: list[Path]
    others: list[Path]
    about: list[Path]
    """Such as README.md."""
    links: list[Path]
    """Links to folders, which are not followed, and links that lead out of the folder or nowhere."""


def list_folder(folder: Path) -> Listing:
    """The files in a folder and in those below it.

    Raises:
        DataError: one of them cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; try `chmod u+rx` on it")

    listing = Listing([], [], [], [])
    home = folder.resolve()
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in [*folders, *files]:
            path = Path(here) / name
            if _is_hidden(name) or (name in folders and not path.is_symlink()):
                continue
            if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(home)):
                listing.links.append(path)
            elif is_about_the_text(path):
                listing.about.append(path)
            else:
                (listing.texts if is_text_name(path) else listing.others).append(path)
    for paths in listing:
        paths.sort(key=lambda path: path.parts)
    return listing


def is_text_name(path: Path) -> bool:
    """Whether a file is named as text is, packed or not."""
    *_, before, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    return (before if last in PACKED_SUFFIXES else last) in TEXT_SUFFIXES


def is_about_the_text(path: Path) -> bool:
    """Whether a file is one such as README.md, by its name."""
    return _ABOUT_THE_TEXT.fullmatch(path.name) is not None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _OF_A_DESKTOP


@dataclass(frozen=True)
class TextFolderSource:
    """The text files in a folder and below it, in the order of their relative paths, each split as a single file is.

    Where all files, or the folders that they lie in, are named for splits, `split` chooses among them; otherwise it
    is all of them. Hidden files, empty files and such as README.md and LICENSE are left out. A link must not lead out
    of the folder, so that a folder from somewhere else cannot name a file outside of it.

    Raises DataError on construction if there is nothing to read, or if it is not clear which files are in the split.
    """

    path: Path
    split: Literal["train", "validation"]
    encoding: str | None = None
    """As data.encoding."""
    ends: Split = "auto"
    """As data.split."""

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
        if not self._files:
            which = f"text file for {self.split}" if self._has_splits else "text file"
            raise DataError(
                f"{self.path} has no {which} (*{', *'.join(TEXT_SUFFIXES)}; README and the like do not count, nor do "
                "empty files); put the stories there"
            )

    def has_split(self, split: str) -> bool:
        """Whether some files are named for this split."""
        return split in self._by_split

    @property
    def name(self) -> str:
        """The path as it was given, and what of it is read."""
        count = f"{len(self._files):,} file{'s' if len(self._files) > 1 else ''}"
        return f"{self.path} ({self.split}, {count})" if self._has_splits else f"{self.path} ({count})"

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the contents of the files in their order, wherever they lie; reads all of them.

        Raises DataError when one cannot be read; names it.
        """
        digest = hashlib.sha256(FORMAT)
        for path in self._files:
            digest.update(bytes.fromhex(TextFileSource(path, self.encoding, self.ends).fingerprint))
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """Yield the documents of one file after the other.

        Raises DataError as TextFileSource does, and names the file.
        """
        for path in self._files:
            yield from documents_of(path, self.encoding, self.ends)

    def remarks(self) -> list[str]:
        """Which files are not read, and what blank lines have made of those without markers."""
        unread = self._listing.about + [path for path in self._listing.texts if _is_empty(path)]
        if self._has_splits:
            unread += self._by_split.get("test", [])
        lines = not_read(unread, "empty files, files about the text, and test files")
        if len(self._files) == 1:
            return lines + TextFileSource(self._files[0], self.encoding, self.ends).remarks()
        if self.ends != "auto":
            return lines
        unmarked = [path for path in self._files if not has_marker(path, self.encoding)]
        documents = list(islice(chain.from_iterable(documents_of(path, self.encoding) for path in unmarked), LOOKED_AT))
        of = self.name if len(unmarked) == len(self._files) else f"{len(unmarked):,} files of {self.name}"
        return lines + ([on_blank_lines(of, documents)] if len(documents) > 1 else [])

    @cached_property
    def _listing(self) -> Listing:
        return list_folder(self.path)

    @cached_property
    def _by_split(self) -> dict[str | None, list[Path]]:
        """The files of each split, and under None those that are named for no split."""
        by_split: dict[str | None, list[Path]] = {}
        for path in self._listing.texts:
            by_split.setdefault(split_of(path.relative_to(self.path)), []).append(path)
        return by_split

    @property
    def _has_splits(self) -> bool:
        return None not in self._by_split and (self.has_split("train") or self.has_split("validation"))

    @cached_property
    def _files(self) -> list[Path]:
        paths = self._listing.texts
        if self._has_splits:
            is_whole = self.split == "validation" and not self.has_split("validation")
            paths = self._by_split.get("train" if is_whole else self.split, [])
        return [path for path in paths if not _is_empty(path)]


def not_read(paths: Sequence[Path], what: str) -> list[str]:
    """A line for each of the first files that are not read, and one for the others, all of which are of a kind."""
    lines = [f"not read: {path}" for path in paths[:_NAMED]]
    return lines + ([f"not read: {len(paths) - _NAMED:,} more {what}"] if len(paths) > _NAMED else [])


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def split_of(relative: Path) -> str | None:
    """The split in the name of the first folder above a file that has one, or else of the file.

    Returns:
        train, validation or test; None: neither has one.
    """
    matches = (_NAMED_FOR_A_SPLIT.fullmatch(name.lower()) for name in (*relative.parent.parts, relative.stem))
    return next((_SPLITS[match[1] or match[2]] for match in matches if match), None)
