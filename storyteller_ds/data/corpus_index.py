"""corpus.json: what a folder of token shards holds, with the checksums of the tokenizer and of the shards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyteller_ds.data.shards import open_shard, shard_digest
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.durable import write_atomically
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError, inside, read_json, seal_of
from storyteller_ds.validation_errors import first_problem

INDEX = "corpus.json"
TOKENIZER = "tokenizer.json"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)


class SplitIndex(_Strict):
    """The shards of one split, and how much text they hold."""

    documents: int = Field(ge=0)
    bytes: int | None = Field(None, ge=0)
    """UTF-8 bytes of the text; None: the corpus was prepared before bytes were counted."""
    unknown_tokens: int = Field(0, ge=0)
    """Tokens that stand for text unknown to the tokenizer; counted for validation only."""
    shards: list[str] = Field(min_length=1)
    """File names, in order."""
    byte_shards: list[str] | None = Field(None, min_length=1)
    """File names, in order, of the shards with the bytes of each token (TextBytes)."""
    prompt_shards: list[str] | None = Field(None, min_length=1)
    """File names, in order, of the shards with each document's number of prompt tokens; None: there are no prompts."""


class UnfinishedIndex(_Strict):
    """What the index holds while the shards are being made."""

    tokenizer: str
    """Fingerprint of the tokenizer."""
    sha256: dict[str, str] = {}
    """Checksums of the shards by name; missing from older indexes."""


class CorpusIndex(UnfinishedIndex):
    """The index of a finished corpus."""

    train: SplitIndex
    validation: SplitIndex
    fingerprint: str
    """sha256 of what was read and how; the same fingerprint means the same tokens."""


Index = TypeVar("Index", bound=UnfinishedIndex)


def write_index(folder: Path, tokenizer: Tokenizer, entries: Mapping[str, Any]) -> None:
    """Write the tokenizer, then the index.

    Args:
        folder: folder of the shards.
        tokenizer: the tokenizer that made them.
        entries: index entries of the shards; empty while they are being made.
    """
    index = {**entries, "tokenizer": tokenizer.fingerprint}
    if entries:
        index["sha256"] = {path.name: shard_digest(path) for path in sorted(folder.glob("*.tokens"))}
    index["seal"] = seal_of(index)
    write_atomically(folder / TOKENIZER, tokenizer.to_json())
    write_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")


def read_index(folder: Path, kind: type[Index]) -> tuple[Index, Tokenizer]:
    """The index and the tokenizer.

    Args:
        folder: folder of the shards.
        kind: CorpusIndex if the shards must be finished, else UnfinishedIndex.

    Raises:
        UntrustedFileError, OSError: one of the two is missing or damaged.
    """
    values = read_json(folder / INDEX)
    try:
        index = kind.model_validate(values)
    except ValidationError as error:
        raise UntrustedFileError(f"{folder / INDEX}: {first_problem(error)}") from None
    if values.get("seal") != seal_of(values):
        raise UntrustedFileError(f"{folder / INDEX}: changed since it was written")
    try:
        tokenizer = load_tokenizer(inside(folder, TOKENIZER))
    except DataError:  # its advice is about tokenizer.path
        raise UntrustedFileError(f"{folder / TOKENIZER}: missing, or no tokenizer") from None
    if tokenizer.fingerprint != index.tokenizer:
        raise UntrustedFileError(f"{folder / TOKENIZER}: not the tokenizer of these shards")
    return index, tokenizer


def open_listed_shard(folder: Path, name: str, index: UnfinishedIndex, vocab_size: int) -> NDArray[Any]:
    """The ids of a shard, after open_shard's checks and a comparison of its checksum with the index.

    open_shard alone would accept an intact shard of another corpus.

    Raises:
        DataError, UntrustedFileError: the shard is missing, damaged, or a different one.
    """
    path = inside(folder, name)
    ids = open_shard(path, vocab_size)
    if (digest := shard_digest(path)) != index.sha256.get(name, digest):
        raise UntrustedFileError(f"{path}: not the shard that is in {INDEX}")
    return ids
