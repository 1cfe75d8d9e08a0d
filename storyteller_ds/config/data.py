"""Where the text comes from, and how it becomes tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from storyteller_ds.config.base import Section
from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.config.prompt_template import PromptTemplate
from storyteller_ds.validation_errors import first_problem

Split = Literal["auto", "marker", "blank_line", "line", "file", "none"]
Packing = Literal["stream", "best_fit", "pad"]


class SourcePart(Section):
    """One of several sources."""

    source: str
    """As data.source, one name."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often each of its training stories is in the corpus (times); with 0.3, three stories in ten are, once
    each."""


class DataConfig(Section):
    """The corpus and how it is cut into training sequences."""

    source: str | tuple[str | SourcePart, ...] = "builtin"
    """`builtin` (generated stories); a text, JSON, CSV or Parquet file, which may be compressed; a folder or a pattern
    of such files; a Hugging Face dataset or folder; or a list of these, each a name or {source, weight}."""
    validation: str | None = None
    """Like source, for validation; null: the validation split of source or, if it has none, a held-out part."""
    encoding: str | None = None
    """Encoding of text files, such as `windows-1252`; null: UTF-8, or what their byte order mark says."""
    split: Split = "auto"
    """Where a story in a text file ends: at `<|endoftext|>` (marker), at a blank line, at the end of a line or of the
    file, or nowhere (none: the end of each file is held out); auto: decided by the content."""
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    """Share held out if validation is null and source has no validation split (fraction of the documents)."""
    sequence_length: int = Field(256, ge=2)
    """Length of a training sequence (tokens)."""
    packing: Packing = "stream"
    """How documents fill sequences. stream: cut from one stream of all documents; best_fit: documents stay whole unless
    they are longer than a sequence, with little padding (2404.10830); pad: one document per sequence, then padding."""
    document_mask: bool = False
    """Whether a story in a packed sequence attends only to itself, with positions from 0 (Llama 3, 2407.21783, sec.
    3.2); in validation too."""
    builtin_stories: int = Field(20_000, ge=1)
    """Number of built-in training stories; a twentieth as many are generated for validation."""
    revision: str | None = None
    """Commit of a Hugging Face dataset (40 hex digits); null: the pinned commit of a known dataset."""
    text_field: str = "text"
    """Column of a Hugging Face dataset, or field of a table, that holds the story. In a single file without `text`, a
    field with another usual name or with the longest texts is chosen."""
    prompt: str | None = None
    """Template of a prompt before each story of a table or dataset, with fields of its row in braces, such as
    `Genre: {genre}\\n`. The model reads the prompt and learns to write only the story; null: none."""
    bad_rows: float = Field(0.0, ge=0, lt=1)
    """Share of malformed rows that is tolerated in a table file; they are left out (fraction of the rows)."""
    streaming: bool = False
    """Stream a Hugging Face dataset instead of downloading all of it first."""
    max_documents: int | None = Field(None, ge=1)
    """Use at most this many documents of a Hugging Face training split or of a folder (documents); null: all."""
    cache_dir: Path | None = None
    """Folder for tokenizers and token shards; null: $STORYTELLER_CACHE, or ~/.cache/storyteller_ds."""

    @field_validator("prompt")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        PromptTemplate(value or "")
        return value

    @field_validator("source", mode="before")
    @classmethod
    def _is_name_or_list(cls, value: Any) -> Any:
        """What is wrong with one of a list, where the types of all its forms would be complained about."""
        if not isinstance(value, list | tuple):
            return value
        if not value:
            raise ValueError("an empty list; name a source")
        for part in value:
            if isinstance(part, Mapping):
                fields = SourcePart.model_fields
                if unknown := next((name for name in part if name not in fields), None):
                    raise ValueError(f"a source has no setting '{unknown}'{did_you_mean(str(unknown), fields)}")
                try:
                    SourcePart.model_validate(part)
                except ValidationError as error:
                    raise ValueError(f"{dict(part)}: {first_problem(error)}") from None
            elif not isinstance(part, str | SourcePart):
                raise ValueError(f"{part!r} is not a source; each is a name, or {{source: NAME, weight: NUMBER}}")
        return value

    @property
    def parts(self) -> tuple[SourcePart, ...]:
        """The sources one by one."""
        names = (self.source,) if isinstance(self.source, str) else self.source
        return tuple(SourcePart(source=each) if isinstance(each, str) else each for each in names)

    @property
    def source_name(self) -> str:
        """The sources for messages and records."""
        return " + ".join(part.source + (f" x {part.weight:g}" if part.weight != 1 else "") for part in self.parts)

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        try:
            "".encode(value or "utf-8")
        except LookupError:
            raise ValueError("no encoding has that name; use one such as utf-8, utf-16-le or windows-1252") from None
        return value


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["bpe", "char", "sentencepiece", "gpt2", "llama2c"] = "bpe"
    """Trained on the corpus: byte-level BPE (bpe), one token a character (char), or SentencePiece's BPE with bytes for
    rare characters (sentencepiece); or GPT-2's own, from the hub or path (gpt2), or the one of path (llama2c)."""
    vocab_size: int = Field(2048, ge=2, le=10_000_000)
    """Rows of the embedding table, and the largest size of a trained tokenizer (tokens)."""
    special_tokens: tuple[str, ...] = ()
    """Special tokens besides the end of text, which no text is encoded to. A trained tokenizer gets them; a given one
    must have them."""
    path: Path | None = None
    """An existing tokenizer to use instead of training one: a tokenizer.json, llama2.c's tokenizer.bin, or a folder
    with a tokenizer.json or with GPT-2's vocab.json and merges.txt."""

    @field_validator("special_tokens")
    @classmethod
    def _have_names(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        if "" in tokens or len(set(tokens)) < len(tokens):
            raise ValueError("each special token needs a name of its own")
        return tokens
