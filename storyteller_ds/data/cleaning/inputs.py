"""The files to clean, each read as data.source reads it, and what is known about their license."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from storyteller_ds.data.cleaning.boundaries import LOOKED_AT, find_boundary, paragraphs, stories_of
from storyteller_ds.data.cleaning.gutenberg import without_license
from storyteller_ds.data.cleaning.policy import Boundary, Policy
from storyteller_ds.data.cleaning.splits import SPLITS
from storyteller_ds.data.sources.listing import is_about_the_text, list_folder, split_of
from storyteller_ds.data.sources.reading import Reading, open_file
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError, read_text

_DATA = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst", ".bz2", ".xz")
"""Suffixes of files in a folder that are read besides text; .json is more likely a vocabulary or settings."""
_NAMED_LICENSE = re.compile(r"licen[cs]e", re.IGNORECASE)
_ABOUT_BYTES = 1 << 20
_LICENSE_LINES = 5


@dataclass(frozen=True)
class Input:
    """One file."""

    name: str
    """Path relative to the folder that was given."""
    path: Path
    source: Source
    split: int
    """Index in SPLITS of the split in the name; -1: none."""

    def stories(self, policy: Policy, removed: Callable[[str], object], log: Callable[[str], object]) -> Iterator[str]:
        """The stories as they were found.

        Args:
            policy: says where they end.
            removed: called with each piece of a Project Gutenberg license.
            log: gets a line about where stories end, if no marker says so.

        Raises:
            DataError: the file cannot be read.
        """
        if not isinstance(self.source, TextFileSource) or self.source.ends == "marker":
            for document in self.source.documents():
                # Hardly any document is a book; most need not be split into blocks.
                if "gutenberg" in document[: 1 << 16].lower():
                    yield "\n\n".join(without_license(paragraphs(document), removed))
                else:
                    yield document
            return
        blocks = without_license(self.source.documents_of("blank_line"), removed)
        head = [*islice(blocks, LOOKED_AT)]
        boundary: Boundary = find_boundary(head) if policy.boundary == "auto" else policy.boundary
        how = " (found by content; --boundary overrules it)" if policy.boundary == "auto" else ""
        log(f"{self.name}: {_SAID[boundary]}{how}")
        yield from stories_of(chain(head, blocks), boundary)


_SAID = {
    "blank_line": "stories end at blank lines",
    "line": "each line is a story",
    "line_break": "stories end at line breaks, paragraphs at blank lines",
    "heading": "stories begin with headings",
    "opening": "stories begin with openings such as 'Once upon a time'",
    "file": "one story",
}


def find_inputs(path: Path, policy: Policy) -> tuple[list[Input], list[str]]:
    """The files to clean, in the order of their relative paths, and the names of those that are not read.

    Args:
        path: a file, or a folder.
        policy: says how they are read.

    Raises:
        DataError: there are none, or one is a link that leads out of the folder.
    """
    reading = Reading(policy.encoding, text_field=policy.text_field, bad_rows=policy.bad_rows)
    if not path.is_dir():
        return [_input(path, path.name, reading)], []
    listing = list_folder(path)
    if listing.links:
        raise DataError(
            f"{listing.links[0]} leads out of {path}, or to a folder, or nowhere; put the files there instead"
        )
    data = [each for each in listing.others if each.suffix.lower() in _DATA]
    files = sorted((each for each in listing.texts + data if each.stat().st_size), key=lambda each: each.parts)
    unread = [each for each in listing.others if each not in data] + [x for x in listing.texts if not x.stat().st_size]
    if not files:
        raise DataError(f"{path} has no file with stories (text, JSON Lines, CSV, Parquet); put some there")
    names = {file: str(file.relative_to(path)) for file in files}
    inputs = [_input(file, name, reading) for file, name in names.items()]
    return inputs, sorted(str(each.relative_to(path)) for each in unread)


def _input(path: Path, name: str, reading: Reading) -> Input:
    split = split_of(Path(name))
    return Input(name, path, open_file(path, reading), SPLITS.index(split) if split else -1)


def licenses(path: Path, inputs: list[Input]) -> list[str]:
    """What files next to the input say about its license, each line with its file's name; empty: nothing is known."""
    folder = path if path.is_dir() else path.parent
    found: list[str] = []
    for about in sorted(filter(is_about_the_text, folder.iterdir())) if folder.is_dir() else []:
        try:
            lines = [line.strip() for line in read_text(about, _ABOUT_BYTES).splitlines() if line.strip()]
        except (UntrustedFileError, OSError):
            continue
        if about.stem.lower().startswith(("licen", "copying")):
            chosen = lines[:1]
        else:
            names = [each.path.name for each in inputs]
            chosen = [line for line in lines if any(name in line for name in names) or _NAMED_LICENSE.search(line)]
        found += [f"{about.name}: {line}" for line in chosen[:_LICENSE_LINES]]
    return found
