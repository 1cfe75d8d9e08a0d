"""Trains a tokenizer into a file (`storyteller tokenizer train`), and finds tokenizers by name to compare them."""

import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from storyteller_ds.config.data import DataConfig, TokenizerConfig
from storyteller_ds.data.preparing import Log, Tally
from storyteller_ds.data.sources.choose import whole_source
from storyteller_ds.data.tokenizers import gpt2
from storyteller_ds.data.tokenizers.choose import TRAINERS, open_tokenizer, train_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.durable import write_atomically
from storyteller_ds.errors import DataError, UserError
from storyteller_ds.user_paths import expand_home

FILE = "tokenizer.json"
LOOKED_AT = 1000
"""Number of documents whose length in tokens is reported."""


class Trained(NamedTuple):
    """A tokenizer, and what it was trained on."""

    tokenizer: Tokenizer
    path: Path
    documents: int
    bytes: int
    seconds: float
    """Time for reading and training."""
    looked_at: int
    """Number of documents that the next two fields are about."""
    characters_per_token: float
    unknown_share: float
    """Share of their tokens that are unknown."""


def train_file(data: DataConfig, config: TokenizerConfig, folder: Path, has_to_be_full: bool, log: Log) -> Trained:
    """Train a tokenizer on all of data.source, and write tokenizer.json.

    Args:
        data: names the text; nothing is held out.
        config: the tokenizer; its kind is one of TRAINERS.
        folder: created if missing; an older tokenizer.json in it is replaced.
        has_to_be_full: refuse a text that has fewer tokens to learn than vocab_size.
        log: gets lines about the progress.

    Raises:
        DataError: the text cannot be read, or does not fit the config. Nothing is written.
        UserError: the folder cannot be written.
    """
    source = whole_source(data)
    for remark in source.remarks():
        log(remark)
    _make(folder)
    tally = Tally(f"training a {config.kind} tokenizer on {source.name}", log)
    first: list[str] = []
    start = time.perf_counter()
    with tally.logged():
        tokenizer = train_tokenizer(config, _noted(tally.counted(source.documents()), first))
    seconds = time.perf_counter() - start
    if not first:
        raise DataError(f"{source.name} has no story to train a tokenizer on; put in stories, or name another text")
    if has_to_be_full and tokenizer.vocab_size < config.vocab_size:
        raise DataError(
            f"{source.name} has only {tokenizer.vocab_size} tokens for a {config.kind} tokenizer, fewer than "
            f"--vocab_size {config.vocab_size}; give --vocab_size {tokenizer.vocab_size}, or more text"
        )
    path = folder / FILE
    try:
        write_atomically(path, tokenizer.to_json())
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}; name another folder") from error
    ids = [i for each in tokenizer.encode_batch(first) for i in each]
    unknown = 0 if tokenizer.unknown is None else ids.count(tokenizer.unknown)
    told = (len(first), sum(map(len, first)) / len(ids), unknown / len(ids))
    return Trained(tokenizer, path, tally.documents, tally.bytes, seconds, *told)


def named_tokenizer(name: str, train_on: str | None, log: Log) -> Tokenizer:
    """A tokenizer to compare.

    Args:
        name: a kind, such as bpe:4096 or gpt2, or a path (see open_tokenizer).
        train_on: the text for kinds that are trained, named as in data.source.
        log: gets lines about the progress.

    Raises:
        DataError, UserError: it cannot be read or trained.
    """
    kind, _, size = name.partition(":")
    path = expand_home(name)
    if path.exists() or (kind != "gpt2" and kind not in TRAINERS):
        return open_tokenizer(path, f"give a file, a folder, gpt2, or {', '.join(f'{each}:SIZE' for each in TRAINERS)}")
    if kind == "gpt2":
        return gpt2.from_hub(None)
    if train_on is None:
        raise UserError(f"{name} has to be trained; say on which text with --train_file")
    if size and not (size.isascii() and size.isdigit()):
        raise UserError(f"{name}: the size of a vocabulary is a number, as in {kind}:4096")
    config = TokenizerConfig.model_validate({"kind": kind, **({"vocab_size": max(2, int(size))} if size else {})})
    tally = Tally(f"training {name} on {train_on}", log)
    with tally.logged():
        return train_tokenizer(config, tally.counted(whole_source(DataConfig(source=train_on)).documents()))


def first_documents(source: str, most: int) -> list[str]:
    """The first stories of a text, which is named as in data.source.

    Raises:
        DataError: it cannot be read, or has none.
    """
    documents = list(itertools.islice(whole_source(DataConfig(source=source)).documents(), most))
    if not documents:
        raise DataError(f"{source} has no story; put in stories, or name another text")
    return documents


def _noted(documents: Iterable[str], first: list[str]) -> Iterator[str]:
    """Yield the documents, appending the first LOOKED_AT of them to a list."""
    for document in documents:
        if len(first) < LOOKED_AT:
            first.append(document)
        yield document


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: {error.strerror or error}; name another folder") from None
