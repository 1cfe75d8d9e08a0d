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
    """How often each of its training stories is in the corpus (times); of 0.3, three stories in ten are, once."""


class DataConfig(Section):
    """The corpus and how it is cut into training sequences."""

    source: str | tuple[str | SourcePart, ...] = "builtin"
    """`builtin` (stories made on the spot), a file of text, JSON, CSV or Parquet, also packed, a folder or a pattern of
    them, or a Hugging Face dataset or folder; or a list of these, a name or {source, weight} each."""
    validation: str | None = None
    """Like source, for validation; null: the validation split of source or, where it has none, a held-out part."""
    encoding: str | None = None
    """Encoding of text files, such as `windows-1252`; null: UTF-8, or what their byte order mark says."""
    split: Split = "auto"
    """Where the stories of text files end: at `<|endoftext|>`, at blank lines, with every line, with the file, or
    nowhere, so that the end of each file is held out; auto: as the content says."""
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    """Part held out when validation is null and source has no validation split (fraction of the documents)."""
    sequence_length: int = Field(256, ge=2)
    """Length of a training sequence (tokens)."""
    packing: Packing = "stream"
    """How documents fill sequences: cut out of one stream of all of them; best_fit: whole where they are not longer
    than a sequence (2404.10830), little is padding; or pad: one a sequence, the rest padding."""
    document_mask: bool = False
    """Whether a story in a packed sequence attends to itself only and its positions begin at 0 (Llama 3, 2407.21783,
    sec. 3.2); in validation too."""
    builtin_stories: int = Field(20_000, ge=1)
    """Number of built-in training stories; a twentieth as many are made for validation."""
    revision: str | None = None
    """Commit of a Hugging Face dataset (40 hex digits); null: the pinned one of a dataset we know."""
    text_field: str = "text"
    """Column of a Hugging Face dataset, or field of a table, that holds the story; a single file without `text` has
    one of another name, or the longest texts, chosen."""
    prompt: str | None = None
    """Text before each story of a table or dataset, with other fields of its row in braces (`Genre: {genre}\\n`): the
    model reads it, and learns to write the story only; null: none."""
    bad_rows: float = Field(0.0, ge=0, lt=1)
    """Part of the rows of a table in one file that may be malformed and is left out (fraction of the rows)."""
    streaming: bool = False
    """Read a Hugging Face dataset as a stream, without keeping the whole of it on disk first."""
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
            raise ValueError("no encoding of text is called so; utf-8, utf-16-le and windows-1252 are some") from None
        return value


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["bpe", "char", "sentencepiece", "gpt2", "llama2c"] = "bpe"
    """Trained on the corpus: byte-level BPE (bpe), one token a character (char), or SentencePiece's BPE with bytes for
    rare characters (sentencepiece); or GPT-2's own, from the hub or path (gpt2), or the one of path (llama2c)."""
    vocab_size: int = Field(2048, ge=2, le=10_000_000)
    """Rows of the embedding table, and the most tokens a trained tokenizer may have (tokens)."""
    special_tokens: tuple[str, ...] = ()
    """Tokens that no text becomes, besides the end of text: a trained tokenizer gets them, a given one must have
    them."""
    path: Path | None = None
    """An existing tokenizer to use in place of a trained one: a tokenizer.json, llama2.c's tokenizer.bin, or a folder
    with a tokenizer.json or with GPT-2's vocab.json and merges.txt."""

    @field_validator("special_tokens")
    @classmethod
    def _have_names(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        if "" in tokens or len(set(tokens)) < len(tokens):
            raise ValueError("each special token needs a name of its own")
        return tokens
