"""Sections of samples.md, each with the stories of a step."""

import re
from pathlib import Path
from typing import NamedTuple

HEADING = re.compile(r"^## Step (\d+)$", re.MULTILINE)


class SampleSection(NamedTuple):
    """The stories that were generated after a step."""

    step: int
    markdown: str
    """A block quote for each prompt: the prompt in bold, then its story."""


def read_samples(path: Path) -> list[SampleSection]:
    """All sections, oldest first; empty if there is no file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    found = list(HEADING.finditer(text))
    ends = [*(each.start() for each in found[1:]), len(text)]
    return [SampleSection(int(each[1]), text[each.end() : end].strip()) for each, end in zip(found, ends, strict=True)]
