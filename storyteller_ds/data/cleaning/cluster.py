"""The same steps as two datatrove pipelines, for more than one machine (docs/cleaning.md shows the executors).

The first has any number of tasks, each with its part of the files; the second has one task, which compares all stories.
The output is the same, byte for byte, as that of `storyteller preprocess`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from storyteller_ds.data.cleaning.inputs import find_inputs, licenses
from storyteller_ds.data.cleaning.language import check_language
from storyteller_ds.data.cleaning.output import check_output_dir, written_whole
from storyteller_ds.data.cleaning.pipeline import Reading, finish
from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.tally import Tally
from storyteller_ds.durable import write_atomically
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import read_json

_SPOOL, _COUNTS = "spool", "counts.json"
_COUNTS_BYTES = 1 << 30
"""Largest file of counts (bytes); the vocabulary is most of it."""


class CleanFiles(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """Each task cleans its part of the files, and keeps the result next to the output.

    Args:
        input_dir: a folder that every machine sees.
        output_dir: also seen by every machine; must not exist, or be empty.
        policy: settings of the steps.
    """

    name, type = "clean files", "storyteller"

    def __init__(self, input_dir: Path, output_dir: Path, policy: Policy) -> None:
        super().__init__()
        self.input_dir, self.output_dir, self.policy = input_dir, output_dir, policy

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Called by an executor; passes no documents on.

        Raises:
            DataError: a file cannot be read.
        """
        check_language(self.policy.language)
        check_output_dir(self.output_dir, self.input_dir)
        inputs, _ = find_inputs(self.input_dir, self.policy)
        first, last = (len(inputs) * each // world_size for each in (rank, rank + 1))
        folder = _part(self.output_dir, rank)
        shutil.rmtree(folder, ignore_errors=True)  # left by a task that was ended
        folder.mkdir(parents=True)
        reading = Reading(self.policy, print)
        reading.clean_into(folder / _SPOOL, inputs[first:last], processes=1)
        counts = {
            "world_size": world_size,
            "tally": reading.tally.to_json(),
            "vocabulary": reading.vocabulary,
            "inputs": reading.inputs,
            "notes": reading.notes,
        }
        write_atomically(folder / _COUNTS, json.dumps(counts))
        yield from ()


class CompareStories(PipelineStep):  # type: ignore[misc]
    """One task drops duplicates and leaks, and writes the files and the card.

    Args:
        input_dir, output_dir, policy: the same as for CleanFiles.
    """

    name, type = "compare stories", "storyteller"

    def __init__(self, input_dir: Path, output_dir: Path, policy: Policy) -> None:
        super().__init__()
        self.input_dir, self.output_dir, self.policy = input_dir, output_dir, policy

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Called by an executor; passes no documents on.

        Raises:
            DataError: a part is missing, or no story is kept.
            UserError: the output cannot be written.
        """
        if rank > 0:
            return
        inputs, unread = find_inputs(self.input_dir, self.policy)
        reading, parts = Reading(self.policy, print), 1
        spools: list[Path] = []
        while len(spools) < parts:
            part = _part(self.output_dir, len(spools))
            if not (part / _COUNTS).exists():
                raise DataError(f"{part} is missing or not complete; run the pipeline of CleanFiles first")
            counts = read_json(part / _COUNTS, _COUNTS_BYTES)
            parts = counts["world_size"]
            reading.tally.merge(Tally.from_json(counts["tally"]))
            reading.vocabulary.update(Counter(counts["vocabulary"]))
            reading.inputs += counts["inputs"]
            reading.notes += counts["notes"]
            spools.append(part / _SPOOL)
        with written_whole(self.output_dir) as folder:
            finish(folder, spools, reading, unread, licenses(self.input_dir, inputs))
        shutil.rmtree(_part(self.output_dir, 0).parent)
        yield from ()


def _part(output_dir: Path, rank: int) -> Path:
    return output_dir.with_name(f"{output_dir.name}.parts") / f"{rank:05d}"
