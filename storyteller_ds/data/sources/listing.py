"""The files of a folder or a pattern, classified by their names."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from storyteller_ds.data.sources.utf8_stream import PACKED_SUFFIXES
from storyteller_ds.errors import DataError

TEXT_SUFFIXES = (".txt", ".text", ".md")
TABLE_SUFFIXES = (".parquet", ".json", ".jsonl", ".ndjson", ".csv", ".tsv")
NOT_STORIES = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json")
"""Files of a dataset that are not data."""

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
"""Names such as train.txt, tiny_val.txt, train-00000-of-00002.txt, val_stories.txt, the folder validation."""


class Listing(NamedTuple):
    """All files below a folder, without hidden ones, in the order of their relative paths."""

    texts: list[Path]
    others: list[Path]
    about: list[Path]
    """Files about the text, such as README.md."""
    links: list[Path]
    """Links to folders, which are not followed, and links that lead out of the folder or nowhere."""

    @property
    def tables(self) -> list[Path]:
        """Files in `others` that are named like tables, packed or not."""
        return [path for path in self.others if suffix_of(path) in TABLE_SUFFIXES and path.name not in NOT_STORIES]


def list_folder(folder: Path) -> Listing:
    """List the files in a folder and all folders below it.

    Raises:
        DataError: one of the folders cannot be read.
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
                (listing.texts if suffix_of(path) in TEXT_SUFFIXES else listing.others).append(path)
    for paths in listing:
        paths.sort(key=lambda path: path.parts)
    return listing


def is_pattern(path: Path) -> bool:
    """Whether a path is a pattern and does not exist."""
    return glob.has_magic(str(path)) and not path.exists()


def matching_files(pattern: Path) -> list[Path]:
    """The files of a pattern, in the order of their paths; `**` stands for folders of any depth.

    Raises:
        DataError: no file matches.
    """
    # Path.glob would include hidden files.
    paths = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    files = [path for path in paths if path.is_file()]
    if not files:
        raise DataError(f"no file is called {pattern}; check the pattern, or give a folder")
    return files


def suffix_of(path: Path) -> str:
    """The suffix of a file's name before packing, in lower case: .txt for stories.TXT.gz."""
    return unpacked_name(path).suffix.lower()


def unpacked_name(path: Path) -> Path:
    """The name of a file before packing: stories.txt for stories.txt.gz."""
    return path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path


def is_about_the_text(path: Path) -> bool:
    """Whether a file is about the text, such as README.md, by its name."""
    return _ABOUT_THE_TEXT.fullmatch(path.name) is not None


def is_empty(path: Path) -> bool:
    """Whether a file has no bytes."""
    return path.is_file() and path.stat().st_size == 0


def split_of(relative: Path) -> str | None:
    """The split in the name of the first folder above a file that names one, or else in that of the file.

    Returns:
        train, validation or test; None: no name has one.
    """
    names = (*relative.parent.parts, unpacked_name(relative).stem)
    matches = (_NAMED_FOR_A_SPLIT.fullmatch(name.lower()) for name in names)
    return next((_SPLITS[match[1] or match[2]] for match in matches if match), None)


def not_read(paths: Sequence[Path], what: str) -> list[str]:
    """A line for each of the first files that are not read, and one that sums up the others as `what`."""
    lines = [f"not read: {path}" for path in paths[:_NAMED]]
    return lines + ([f"not read: {len(paths) - _NAMED:,} more {what}"] if len(paths) > _NAMED else [])


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _OF_A_DESKTOP
