"""The built-in corpus as a source of documents: it needs no network and no files."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from storyteller_ds.data.builtin import grammar


@dataclass(frozen=True)
class BuiltinSource:
    """The first `stories` stories of one split of the built-in corpus."""

    split: Literal["train", "validation"]
    stories: int
    seed: int = 0

    @property
    def name(self) -> str:
        """The source's name in configs and records."""
        return "builtin"

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex digits that changes whenever the documents may have changed."""
        identity = f"builtin/{grammar.GRAMMAR_VERSION}/{self.split}/{self.stories}/{self.seed}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """Yield the stories in order, making each on demand."""
        for index in range(self.stories):
            yield grammar.story(self.split, self.seed, index)

    def remarks(self) -> list[str]:
        """No remarks: the stories are as they were made."""
        return []
