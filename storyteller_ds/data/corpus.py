"""A prepared corpus: tokenizer and token shards of both splits, made once and kept in a cache folder."""

import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.shards import VERSION as SHARD_VERSION
from storyteller_ds.data.shards import TokenStream, open_shard, write_shards
from storyteller_ds.data.sources.choose import Sources, choose_sources
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from storyteller_ds.durable import write_atomically
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError, inside, read_json, seal_of
from storyteller_ds.user_paths import expand_home

FORMAT = 1
"""Raise it whenever the same text would give other tokens."""
SHARD_TOKENS = 100_000_000
_DOCUMENTS_AT_ONCE = 1000
_INDEX = "corpus.json"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Corpus:
    """Tokens to train and validate on."""

    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream
    fingerprint: str
    """sha256 of what was read and how; the same fingerprint means the same tokens."""


def _key(run: RunConfig, sources: Sources) -> str:
    """Name of the cache folder: whatever would change the tokens changes it. Reads the sources once."""
    tokenizer = run.tokenizer
    given = _given_tokenizer(run)
    tokens = given.fingerprint if given else f"{tokenizer.kind}/{tokenizer.vocab_size}"
    # How shards are written is no part of the fingerprint: their tokens are the same, and old runs continue.
    parts = (FORMAT, SHARD_VERSION, sources.train.fingerprint, sources.validation.fingerprint, tokens)
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:24]


def prepare_corpus(run: RunConfig, say: Callable[[str], None]) -> str:
    """Make tokenizer and token shards unless the cache has them; one process per machine calls this.

    Returns the key that open_corpus takes.

    Args:
        run: its data and tokenizer sections count.
        say: told what is being done, a line each.

    Raises:
        DataError: the text or the tokenizer cannot be used. Nothing is left behind then.
    """
    sources = choose_sources(run.data)
    key = _key(run, sources)
    folder = _cache(run) / key
    if (folder / _INDEX).exists():
        return key
    # Beside it and renamed at the end, so that another process, or the next run, never sees a half.
    work = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        work.mkdir(parents=True)
        _make(run, sources, work, say)
        try:
            work.rename(folder)
        except OSError:
            if not (folder / _INDEX).exists():  # otherwise another process was faster; its result is the same
                raise
    except OSError as error:
        raise DataError(
            f"the prepared corpus cannot be written to {folder}: {error.strerror or error}; "
            "make room there, or set data.cache_dir"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return key


def open_corpus(run: RunConfig, key: str) -> Corpus:
    """The corpus that prepare_corpus has made and named `key`, all shards checked.

    Raises:
        DataError: a shard is missing or damaged.
    """
    folder = _cache(run) / key
    try:
        index = read_json(folder / _INDEX)
        if not isinstance(index, dict) or index.get("seal") != seal_of(index):
            raise UntrustedFileError(f"{folder / _INDEX}: changed since it was written")
        shards = [[inside(folder, name) for name in index[split]["shards"]] for split in ("train", "validation")]
        tokenizer = load_tokenizer(inside(folder, _TOKENIZER), f"remove the folder {folder} and run again")
        fingerprint: str = index["fingerprint"]
        if tokenizer.fingerprint != index["tokenizer"] or not all(shards):
            raise UntrustedFileError(f"{folder / _TOKENIZER}: not the tokenizer of these shards")
    except (UntrustedFileError, OSError, KeyError, TypeError) as error:
        raise DataError(f"the prepared corpus {folder} is damaged ({error}); remove the folder and run again") from None
    train, validation = (
        TokenStream([open_shard(path, run.tokenizer.vocab_size) for path in split]) for split in shards
    )
    return Corpus(tokenizer, train, validation, fingerprint)


def _make(run: RunConfig, sources: Sources, folder: Path, say: Callable[[str], None]) -> None:
    for remark in sources.remarks():
        say(remark)
    tokenizer = _given_tokenizer(run)
    if tokenizer is None:
        say(f"training a {run.tokenizer.kind} tokenizer on {sources.train.name}")
        tokenizer = train_tokenizer(run.tokenizer, sources.train.documents())
    index: dict[str, object] = {}
    for split, source in (("train", sources.train), ("validation", sources.validation)):
        say(f"tokenizing {source.name} for {split}")
        index[split] = {"source": source.name} | _write_split(folder, split, source, tokenizer, run)
    parts = (FORMAT, sources.train.fingerprint, sources.validation.fingerprint, tokenizer.fingerprint)
    index["fingerprint"] = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
    index["tokenizer"] = tokenizer.fingerprint
    index["seal"] = seal_of(index)
    write_atomically(folder / _TOKENIZER, tokenizer.to_json())
    write_atomically(folder / _INDEX, json.dumps(index, indent=2) + "\n")


def _given_tokenizer(run: RunConfig) -> Tokenizer | None:
    """The tokenizer of tokenizer.path, if there is one; checked against the rows of the embedding."""
    if run.tokenizer.path is None:
        return None
    tokenizer = load_tokenizer(expand_home(run.tokenizer.path))
    if tokenizer.vocab_size > run.tokenizer.vocab_size:
        raise DataError(
            f"the tokenizer {run.tokenizer.path} has {tokenizer.vocab_size} tokens, more than "
            f"tokenizer.vocab_size={run.tokenizer.vocab_size}; raise tokenizer.vocab_size"
        )
    return tokenizer


def _write_split(folder: Path, split: str, source: Source, tokenizer: Tokenizer, run: RunConfig) -> dict[str, object]:
    documents = 0

    def encoded() -> Iterator[list[int]]:
        nonlocal documents
        # The stream begins with a separator, so that the first word of the first document is predicted too.
        yield [tokenizer.end_of_text]
        texts = source.documents()
        while batch := list(itertools.islice(texts, _DOCUMENTS_AT_ONCE)):
            for ids in tokenizer.encode_batch(batch):
                documents += 1
                yield [*ids, tokenizer.end_of_text]

    shards = write_shards(folder, split, encoded(), run.tokenizer.vocab_size, SHARD_TOKENS)
    if documents == 0:
        raise DataError(f"{source.name} has no documents for {split}; use more text, or set data.validation")
    return {"documents": documents, "shards": shards}


def _cache(run: RunConfig) -> Path:
    if run.data.cache_dir is not None:
        return expand_home(run.data.cache_dir)
    return expand_home(os.environ.get("STORYTELLER_CACHE", "~/.cache/storyteller_ds"))
