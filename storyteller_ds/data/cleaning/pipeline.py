"""From a folder of found text to a folder that `data.source` reads: the order of the steps.

read ─► license ─► where stories end ─► repair ─► cut ─► filter ─► hash │ ─► duplicates ─► leaks ─► files ─► card
└─────────────────────── one story after the other, on all cores ──────┘   all stories, by their hashes
"""

import importlib.metadata
import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.cleaning import card, output
from storyteller_ds.data.cleaning.decisions import decide
from storyteller_ds.data.cleaning.inputs import Input, find_inputs, licenses
from storyteller_ds.data.cleaning.language import check_language
from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.shingles import words_of
from storyteller_ds.data.cleaning.spool import Spool, SpoolWriter
from storyteller_ds.data.cleaning.tally import Count, Tally
from storyteller_ds.data.cleaning.workers import cleaned
from storyteller_ds.errors import DataError
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile

Log = Callable[[str], None]
_LIBRARIES = ("ftfy", "py3langid", "rensa")


def preprocess(input_dir: Path, output_dir: Path, policy: Policy, processes: int, log: Log) -> dict[str, Any]:
    """Clean the stories of a file or a folder, and write them with their card.

    Args:
        input_dir: read, never written.
        output_dir: must not exist, or be an empty folder.
        policy: settings of the steps.
        processes: number of processes that clean stories; makes no difference to the result.
        log: gets a line about each step.

    Returns:
        The contents of card.json.

    Raises:
        DataError: the text cannot be read, or no story is kept.
        UserError: the output cannot be written.
    """
    check_language(policy.language)
    output.check_output_dir(output_dir, input_dir)
    inputs, unread = find_inputs(input_dir, policy)
    for name in unread:
        log(f"not read: {name}")
    with output.written_whole(output_dir) as folder:
        spools = folder / "spool"
        reading = Reading(policy, log)
        reading.clean_into(spools, inputs, processes)
        return finish(folder, [spools], reading, unread, licenses(input_dir, inputs))


class Reading:
    """The steps that look at one story at a time, and what they have counted."""

    def __init__(self, policy: Policy, log: Log) -> None:
        self.policy = policy
        self.tally = Tally()
        self.vocabulary: Counter[str] = Counter()
        """How often each word occurs in the stories of the spool."""
        self.inputs: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.log = log

    def clean_into(self, spool: Path, inputs: Sequence[Input], processes: int) -> None:
        """Write the stories that are kept to a new spool.

        Raises:
            DataError: a file cannot be read.
        """
        stories = self._stories(inputs)
        with SpoolWriter(spool) as writer, meanwhile(lambda: self.log(f"cleaning: {self._progress()}"), LINE_EVERY_S):
            for batch, split in cleaned(stories, self.policy, processes):
                writer.append(batch, split)
                self.tally.merge(batch.tally)
                self.vocabulary.update(batch.vocabulary)

    def _stories(self, inputs: Sequence[Input]) -> Iterator[tuple[str, int]]:
        for each in inputs:
            entry: dict[str, Any] = {"name": each.name, "fingerprint": each.source.fingerprint, "stories": 0}
            self.inputs.append(entry)
            for story in each.stories(self.policy, self._remove, self.note):
                entry["stories"] += 1
                yield story, each.split

    def _remove(self, text: str) -> None:
        self.tally.removed.setdefault("gutenberg", Count()).add(text)

    def note(self, line: str) -> None:
        """Log a line, and keep it for the card."""
        self.notes.append(line)
        self.log(line)

    def _progress(self) -> str:
        return f"{self.tally.read.stories:,} stories, {self.tally.read.characters / 1e6:,.1f} million characters so far"


def finish(
    folder: Path, spools: Sequence[Path], reading: Reading, unread: Sequence[str], license_lines: Sequence[str]
) -> dict[str, Any]:
    """Run the steps that compare all stories, write the files and the card, and remove the spools.

    Raises:
        DataError: no story is kept.
    """
    spool, tally = Spool(spools), reading.tally
    if len(spool) == 0:
        raise DataError(f"no story stays of {tally.read.stories:,}{_why(tally)}")
    reading.log(f"comparing {len(spool):,} stories")
    decisions = decide(spool, reading.policy, tally)
    for name in decisions.empty:
        reading.note(f"no story fell into {name}: there are few, and each is placed by its own hash")
    splits = output.write_splits(folder, spool, decisions)
    vocabulary = _without_dropped(reading.vocabulary, spool, decisions.kept)
    result = card.card_of(
        reading.policy,
        reading.inputs,
        unread,
        reading.notes,
        license_lines,
        tally,
        splits,
        decisions.found_by_check,
        {name: importlib.metadata.version(name) for name in _LIBRARIES},
        len(vocabulary),
    )
    card.write_card(folder, result, _save_plots(folder, spool, decisions.kept, vocabulary))
    for each in spools:
        shutil.rmtree(each)
    return result


def _save_plots(folder: Path, spool: Spool, kept: NDArray[np.int64], vocabulary: Counter[str]) -> list[str]:
    """Save the plots; returns their file names."""
    from storyteller_ds.data.cleaning import plots

    plots.save_lengths(spool.words[kept], folder / plots.LENGTHS)
    plots.save_vocabulary(vocabulary, folder / plots.VOCABULARY)
    return [plots.LENGTHS, plots.VOCABULARY]


def _without_dropped(vocabulary: Counter[str], spool: Spool, kept: NDArray[np.int64]) -> Counter[str]:
    """The words of the stories that are kept; only the dropped ones are read, which are far fewer."""
    for index in np.setdiff1d(np.arange(len(spool)), kept).tolist():
        vocabulary.subtract(words_of(spool.text(index)))
    return +vocabulary


def _why(tally: Tally) -> str:
    counts = sorted(tally.dropped.items(), key=lambda each: -each[1].stories)
    reasons = ", ".join(f"{count.stories:,} {name}" for name, count in counts)
    fix = {"other_language": "; --language any keeps every language", "too_short": "; lower --min_chars"}
    return f" ({reasons})" + (fix.get(counts[0][0], "") if counts else "")
