"""corpus.json, which says what a folder of token shards holds, and vouches for itself, the tokenizer and the shards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from storyteller_ds.data.shards import open_shard, shard_digest
from storyteller_ds.data.tokenizer import Tokenizer, load_tokenizer
from storyteller_ds.durable import write_atomically
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError, inside, read_json, seal_of

INDEX = "corpus.json"
TOKENIZER = "tokenizer.json"
_SHARDS = "sha256"
"""Key of the shards' checksums by name; older indexes do not have it."""


def write_index(folder: Path, tokenizer: Tokenizer, entries: Mapping[str, Any]) -> None:
    """Write the tokenizer, then the index.

    Args:
        folder: of the shards.
        tokenizer: which has made them.
        entries: what the index says about the shards; nothing, while they are being made.
    """
    index = {**entries, "tokenizer": tokenizer.fingerprint}
    if entries:
        index[_SHARDS] = {path.name: shard_digest(path) for path in sorted(folder.glob("*.tokens"))}
    index["seal"] = seal_of(index)
    write_atomically(folder / TOKENIZER, tokenizer.to_json())
    write_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")


def read_index(folder: Path) -> tuple[dict[str, Any], Tokenizer]:
    """The entries of the index, whose values may be of any kind, and the tokenizer.

    Raises:
        UntrustedFileError, OSError: one of the two is missing or damaged.
    """
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or index.get("seal") != seal_of(index):
        raise UntrustedFileError(f"{folder / INDEX}: changed since it was written")
    try:
        tokenizer = load_tokenizer(inside(folder, TOKENIZER))
    except DataError:  # whose advice is about tokenizer.path
        raise UntrustedFileError(f"{folder / TOKENIZER}: missing, or no tokenizer") from None
    if tokenizer.fingerprint != index.get("tokenizer"):
        raise UntrustedFileError(f"{folder / TOKENIZER}: not the tokenizer of these shards")
    return index, tokenizer


def open_listed_shard(folder: Path, name: object, index: Mapping[str, Any], vocab_size: int) -> NDArray[Any]:
    """The ids of a shard, after open_shard's checks, and that it is the one that the index speaks of.

    A shard of another corpus is as whole as ours.

    Raises:
        DataError, UntrustedFileError: it is missing, damaged, or another.
    """
    path = inside(folder, name)
    ids = open_shard(path, vocab_size)
    digest, listed = shard_digest(path), index.get(_SHARDS, {})
    if not isinstance(listed, dict) or listed.get(name, digest) != digest:
        raise UntrustedFileError(f"{path}: not the shard that {INDEX} speaks of")
    return ids
