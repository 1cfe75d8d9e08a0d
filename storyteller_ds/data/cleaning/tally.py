"""Counts of what came in, what was dropped and what was repaired; every story, or part of a long one, counts once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3
"""Number of examples that are kept for each reason."""
EXAMPLE_CHARACTERS = 160
"""Length of an example: of the beginning of the text, or of the end if the example is about that."""

_GROUPS = ("removed", "dropped", "repaired")


@dataclass
class Count:
    """Stories (or pieces of text) of one kind."""

    stories: int = 0
    characters: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, text: str, example: str | None = None) -> None:
        """Count one more.

        Args:
            text: the text whose length is counted.
            example: what to show of it; None: its beginning.
        """
        self.stories += 1
        self.characters += len(text)
        if len(self.examples) < EXAMPLES:
            self.examples.append(shortened(text) if example is None else example)

    def merge(self, other: "Count") -> None:
        """Add the counts of another one, which comes later in the text."""
        self.stories += other.stories
        self.characters += other.characters
        self.examples += other.examples[: EXAMPLES - len(self.examples)]


class Tally:
    """What happened to the stories of a part of the text, or of all of it."""

    def __init__(self) -> None:
        self.read = Count()
        self.removed: dict[str, Count] = {}
        """Text that is not part of a story, by what it is."""
        self.dropped: dict[str, Count] = {}
        """Dropped stories, by reason."""
        self.repaired: dict[str, Count] = {}
        """Stories by what was repaired in them; a story may have several repairs."""
        self.spaces = 0
        """By how many characters repairs and cutting shortened the text; negative if it became longer."""

    def merge(self, other: "Tally") -> None:
        """Add the counts of another one, which comes later in the text."""
        self.read.merge(other.read)
        self.spaces += other.spaces
        for ours, theirs in (
            (self.removed, other.removed),
            (self.dropped, other.dropped),
            (self.repaired, other.repaired),
        ):
            for name, count in theirs.items():
                ours.setdefault(name, Count()).merge(count)

    def to_json(self) -> dict[str, Any]:
        """The tally as JSON, for from_json."""
        groups = {name: entries(getattr(self, name)) for name in _GROUPS}
        return {"read": vars(self.read), "spaces": self.spaces, **groups}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Tally":
        """The tally that to_json was called on."""
        tally = cls()
        tally.read, tally.spaces = Count(**value["read"]), value["spaces"]
        for name in _GROUPS:
            getattr(tally, name).update({key: Count(**each) for key, each in value[name].items()})
        return tally

    def check(self, kept: Iterable[Count]) -> None:
        """Raises AssertionError unless kept and dropped add up to what came in, in stories and characters."""
        out = Count()
        for count in (*kept, *self.dropped.values()):
            out.stories += count.stories
            out.characters += count.characters
        if (out.stories, out.characters + self.spaces) != (self.read.stories, self.read.characters):
            raise AssertionError(
                f"read {self.read.stories} stories of {self.read.characters} characters, but kept and dropped are "
                f"{out.stories} of {out.characters + self.spaces}"
            )


def entries(counts: Mapping[str, Count]) -> dict[str, Any]:
    """Counts as JSON, sorted by name."""
    return {name: vars(counts[name]) for name in sorted(counts)}


def shortened(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[:EXAMPLE_CHARACTERS]} …"
