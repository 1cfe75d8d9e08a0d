"""The settings for cleaning a text."""

from dataclasses import dataclass
from typing import Literal

Punctuation = Literal["keep", "plain"]
Boundary = Literal["auto", "blank_line", "line", "line_break", "heading", "opening", "file"]
"""Where stories end in text without `<|endoftext|>`; each is explained in boundaries.py."""
Splitting = Literal["hash", "given"]


@dataclass(frozen=True)
class Policy:
    """Settings of the steps; defaults are explained in docs/cleaning.md."""

    boundary: Boundary = "auto"
    """Where stories end."""
    language: str = "en"
    """The only language that is kept (ISO 639-1); `any`: all of them."""
    punctuation: Punctuation = "keep"
    """Whether curly quotes, dashes and ellipses stay as they are or become those of a keyboard."""
    min_characters: int = 100
    """A shorter story is dropped."""
    max_characters: int = 32_000
    """A longer story is cut: at chapters, at the ends of paragraphs, at the ends of sentences."""
    splitting: Splitting = "hash"
    """Split by the hash of a story, or as the files are named, such as train.txt and validation.txt."""
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    """Fractions of all stories, if the hash splits them; 0: there is no such file."""
    encoding: str | None = None
    """As data.encoding."""
    text_field: str = "text"
    """As data.text_field."""
    bad_rows: float = 0.0
    """As data.bad_rows."""
