"""Writes the output folder: as a whole or not at all, and with the same bytes for the same stories."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storyteller_ds.data.cleaning.decisions import Decisions
from storyteller_ds.data.cleaning.splits import SPLITS
from storyteller_ds.data.cleaning.spool import Spool
from storyteller_ds.data.cleaning.tally import Count
from storyteller_ds.data.sources.story_ends import MARKER
from storyteller_ds.data.work_folder import LOCK, put_in_place, work_folder
from storyteller_ds.durable import flush_to_disk
from storyteller_ds.errors import UserError


class Split(NamedTuple):
    """A file of stories that was written."""

    name: str
    stories: int
    characters: int
    words: int
    bytes: int
    sha256: str

    @property
    def as_count(self) -> Count:
        """As a Count, for the sums of a tally."""
        return Count(self.stories, self.characters)


def check_output_dir(output_dir: Path, input_dir: Path) -> None:
    """Raises UserError if `output_dir` exists and is not an empty folder, or if it is inside what is read."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(
            f"{output_dir} exists already, and is not an empty folder; remove it, or choose another --output_dir"
        )
    if input_dir.is_dir() and output_dir.resolve().is_relative_to(input_dir.resolve()):
        raise UserError(
            f"{output_dir} lies in {input_dir}, and would be read by the next run; choose another --output_dir"
        )


@contextlib.contextmanager
def written_whole(output_dir: Path) -> Iterator[Path]:
    """A folder that becomes `output_dir` when the block ends, and is removed when it fails.

    Raises:
        UserError: it cannot be written, or another process has written `output_dir` in the meantime.
    """
    try:
        with work_folder(output_dir) as folder:
            try:
                _remove_all(folder)  # left by a killed process
                yield folder
                for path in folder.iterdir():
                    flush_to_disk(path)
                put_in_place(folder, output_dir)
                flush_to_disk(output_dir.parent)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise UserError(
                f"{output_dir} was written by another process meanwhile; choose another --output_dir"
            ) from error
        reason = error.strerror or error
        raise UserError(
            f"{output_dir} could not be written: {reason}; make room, or choose another --output_dir"
        ) from error


def _remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def write_splits(folder: Path, spool: Spool, decisions: Decisions) -> list[Split]:
    """Write a text file for each split that has stories, in their order, with a line of `<|endoftext|>` after each.

    Args:
        folder: where train.txt and the others go.
        spool: the stories.
        decisions: which stories are kept, and in which split.
    """
    written = []
    for index, name in enumerate(SPLITS):
        stories = decisions.kept[decisions.splits[decisions.kept] == index]
        if len(stories) == 0:
            continue
        digest, size = hashlib.sha256(), 0
        with (folder / f"{name}.txt").open("wb") as file:
            for text in map(spool.text, stories.tolist()):
                data = f"{text}\n{MARKER}\n".encode()
                digest.update(data)
                size += file.write(data)
        characters, words = (int(each[stories].sum(dtype="int64")) for each in (spool.characters, spool.words))
        written.append(Split(name, len(stories), characters, words, size, digest.hexdigest()))
    return written
