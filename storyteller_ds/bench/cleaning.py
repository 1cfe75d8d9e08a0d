"""How fast `storyteller preprocess` is, including the search for near-duplicates, and what it spends its time on."""

import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storyteller_ds.bench.timing import seconds_of
from storyteller_ds.data.builtin import grammar
from storyteller_ds.data.cleaning.clean import signatures_of
from storyteller_ds.data.cleaning.filters import reason_to_drop
from storyteller_ds.data.cleaning.normalize import normalize
from storyteller_ds.data.cleaning.pipeline import preprocess
from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.shingles import shingles_of, words_of
from storyteller_ds.data.sources.story_ends import MARKER

_STORIES = 2000
_REPLACED = 0.17
"""Fraction of the words that are replaced: openings recur as in real stories, most sequences of words do not."""
_SAMPLE = 500
"""Stories on which each step is timed alone."""


@dataclass(frozen=True)
class CleaningRate:
    """What was measured."""

    megabytes: float
    processes: int
    seconds: float
    """Time from reading the text to writing the dataset card."""
    alone: dict[str, float]
    """Seconds per megabyte that each step of one story takes alone on one core."""

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.megabytes / self.seconds

    @property
    def limit(self) -> float:
        """MB/s if these steps were the only work, on the cores of all processes."""
        return self.processes / sum(self.alone.values())

    def line(self) -> str:
        """The result in one line for people."""
        steps = ", ".join(f"{name} {1000 * each:.0f}" for name, each in self.alone.items())
        return (
            f"preprocess: {self.rate:.1f} MB/s of {self.megabytes:.0f} MB with {self.processes} processes; "
            f"limit {self.limit:.1f} MB/s: the steps of one story, on one core (ms/MB: {steps})"
        )


def measure(megabytes: float, processes: int) -> CleaningRate:
    """Clean a text of made-up stories in a temporary folder.

    Args:
        megabytes: size of the text.
        processes: number of processes that clean it.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "stories.txt"
        size = _write(source, int(1e6 * megabytes))
        start = time.perf_counter()
        preprocess(source, Path(folder) / "out", Policy(), processes, _nothing)
        seconds = time.perf_counter() - start
    return CleaningRate(size / 1e6, processes, seconds, _alone())


def _nothing(_: str) -> None:
    """Ignore progress."""


def _stories() -> Iterator[str]:
    rng = random.Random(0)
    told = [grammar.story("train", 0, index) for index in range(_STORIES)]
    sentences = [sentence for story in told for sentence in re.split(r"(?<=[.!?])\s+", story)]
    words = re.findall("[a-z]+", " ".join(sentences))

    def replaced(found: re.Match[str]) -> str:
        return rng.choice(words) if rng.random() < _REPLACED else found[0]

    while True:
        chosen = rng.choices(sentences, k=rng.randint(12, 28))
        yield re.sub(r"\b[a-z]+\b", replaced, " ".join(chosen)) + " The end."


def _write(path: Path, size: int) -> int:
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for story in _stories():
            written += file.write(f"{story}\n{MARKER}\n")
            if written >= size:
                return written
    return written


def _alone() -> dict[str, float]:
    stories = [story for _, story in zip(range(_SAMPLE), _stories(), strict=False)]
    megabytes = sum(map(len, stories)) / 1e6
    words = [*map(words_of, stories)]
    shingles = shingles_of(words)
    steps: dict[str, Callable[[], object]] = {
        "repair": lambda: [normalize(each, "keep") for each in stories],
        "filter": lambda: [reason_to_drop(each, Policy()) for each in stories],
        "words": lambda: [*map(words_of, stories)],
        "shingles": lambda: shingles_of(words),
        "MinHash": lambda: signatures_of(shingles),
    }
    return {name: min(seconds_of(step) for _ in range(3)) / megabytes for name, step in steps.items()}
