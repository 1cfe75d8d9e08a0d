"""Datasets of stories on the Hugging Face hub that `storyteller download` knows by a short name."""

from typing import NamedTuple

from storyteller_ds.data.sources.hub import PINNED_REVISIONS

TINY_STORIES = "roneneldan/TinyStories"
WRITING_PROMPTS = "euclaise/writingprompts"


class KnownDataset(NamedTuple):
    """A dataset, and which of its files are used."""

    repository: str
    revision: str | None
    """Commit; None: the newest one is looked up and recorded."""
    files: tuple[str, ...]
    """Patterns for the names of its files."""
    text_field: str | None
    """Field of its rows that holds the stories; None: the files are text."""
    what: str
    """Description for people."""


KNOWN = {
    "tinystories": KnownDataset(
        TINY_STORIES,
        PINNED_REVISIONS[TINY_STORIES],
        ("README.md", "data/*.parquet"),
        "text",
        "short stories in the words of small children, by GPT-3.5 and GPT-4",
    ),
    "tinystories-gpt4": KnownDataset(
        TINY_STORIES,
        PINNED_REVISIONS[TINY_STORIES],
        ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
        None,
        "those by GPT-4 alone",
    ),
    "writingprompts": KnownDataset(
        WRITING_PROMPTS,
        PINNED_REVISIONS[WRITING_PROMPTS],
        ("README.md", "data/*.parquet"),
        "story",
        "stories that people have written on Reddit, with the prompts",
    ),
    "gutenberg": KnownDataset(
        "sedthh/gutenberg_english",
        None,
        ("README.md", "data/*.parquet"),
        "TEXT",
        "English books of Project Gutenberg, of all kinds; the field METADATA has their subjects",
    ),
    "bookcorpus": KnownDataset(
        "rojagtap/bookcorpus",
        None,
        ("README.md", "*.parquet", "*/*.parquet"),
        "text",
        "novels by unpublished authors, one sentence a row; whether it may be used is for you to judge",
    ),
}
