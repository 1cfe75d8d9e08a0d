"""Sections of samples.md: the stories of a step."""

import re
from pathlib import Path
from typing import NamedTuple

HEADING = re.compile(r"^## Step (\d+)$", re.MULTILINE)


class SampleSection(NamedTuple):
    """The stories that were told after a step."""

    step: int
    markdown: str
    """A block quote for each prompt, which stands in bold before its story."""


def read_samples(path: Path) -> list[SampleSection]:
    """All sections, oldest first; none where there is no file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    found = list(HEADING.finditer(text))
    ends = [*(each.start() for each in found[1:]), len(text)]
    return [SampleSection(int(each[1]), text[each.end() : end].strip()) for each, end in zip(found, ends, strict=True)]
