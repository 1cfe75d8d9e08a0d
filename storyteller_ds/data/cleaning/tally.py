"""Counts of what came in, what was dropped and what was repaired; every story is counted exactly once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3
"""Kept of each reason."""
EXAMPLE_CHARACTERS = 160
"""Of the beginning of an example; of one that is about its end, of the end."""

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
            text: whose length counts.
            example: what to show of it; None: its beginning.
        """
        self.stories += 1
        self.characters += len(text)
        if len(self.examples) < EXAMPLES:
            self.examples.append(shortened(text) if example is None else example)

    def merge(self, other: "Count") -> None:
        """Add what another has counted, which comes later in the text."""
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
        """Stories by the reason."""
        self.repaired: dict[str, Count] = {}
        """Stories by what was repaired in them; a story may have several."""
        self.spaces = 0
        """Characters fewer by repairs and by cutting; below zero: more."""

    def merge(self, other: "Tally") -> None:
        """Add what another has counted, which comes later in the text."""
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
        """For from_json."""
        groups = {name: entries(getattr(self, name)) for name in _GROUPS}
        return {"read": vars(self.read), "spaces": self.spaces, **groups}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Tally":
        """What to_json was called on."""
        tally = cls()
        tally.read, tally.spaces = Count(**value["read"]), value["spaces"]
        for name in _GROUPS:
            getattr(tally, name).update({key: Count(**each) for key, each in value[name].items()})
        return tally

    def check(self, kept: Iterable[Count]) -> None:
        """Raises AssertionError unless what came in is what stays and what was dropped, in stories and characters."""
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
    """Counts as JSON, in the order of their names."""
    return {name: vars(counts[name]) for name in sorted(counts)}


def shortened(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[:EXAMPLE_CHARACTERS]} …"
