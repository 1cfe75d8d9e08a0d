"""A prepared corpus: the tokenizer and the token shards of both splits, made once and kept in a cache folder.

The cache can always be rebuilt from the text: a damaged corpus is made again, and a preparation continues from
what a killed one has finished.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.cache import cache_folder
from storyteller_ds.data.corpus_index import INDEX, CorpusIndex, SplitIndex, open_listed_shard, read_index
from storyteller_ds.data.preparing import FORMAT, MOST_BYTES_OF_A_TOKEN, MOST_TOKENS_OF_A_PROMPT, make_corpus
from storyteller_ds.data.shards import VERSION as SHARD_VERSION
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.sources.choose import Sources, choose_sources
from storyteller_ds.data.text_bytes import TextBytes
from storyteller_ds.data.tokenizers.choose import given_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.data.work_folder import put_in_place, set_aside, work_folder
from storyteller_ds.errors import DataError
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.untrusted import UntrustedFileError

_DAMAGE = (DataError, UntrustedFileError, OSError)
"""Raised for files that are missing or have changed."""


class NotPrepared(DataError):
    """The cache has no tokens for a text yet."""


@dataclass(frozen=True)
class Corpus:
    """Tokens to train and validate on."""

    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream
    validation_bytes: TextBytes
    """Bytes of the text behind the validation tokens."""
    train_prompts: NDArray[np.int64] | None
    """[documents] Number of prompt tokens of each, which are not targets; None: there are no prompts."""
    validation_prompts: NDArray[np.int64] | None
    """Like train_prompts."""
    train_size: SplitIndex
    validation_size: SplitIndex
    fingerprint: str
    """sha256 of what was read and how; the same fingerprint means the same tokens."""


def prepare_corpus(run: RunConfig, log: Callable[[str], None]) -> str:
    """Make the tokenizer and token shards unless the cache has them intact; one process per machine calls this.

    Returns the key that open_corpus takes.

    Args:
        run: only its data and tokenizer sections are used.
        log: gets a line about each step.

    Raises:
        DataError: the text or the tokenizer cannot be used, the text changed in the meantime, or the cache cannot be
            written. Nothing is left behind then; after an interruption, finished parts are kept and the next call
            continues from there.
    """
    sources, given = choose_sources(run.data), given_tokenizer(run.tokenizer, run.data.cache_dir)
    folder, problem = _looked_up(run, sources, given, log)
    key = folder.name
    if problem is None:
        return key
    try:
        if problem:
            log(f"preparing the corpus {folder} again: {problem}")
            set_aside(folder)
        with work_folder(folder) as work:
            _fill(run, sources, given, key, work, log)
            try:
                put_in_place(work, folder)
            except OSError:
                if _problem(folder, run.tokenizer.vocab_size) is not None:
                    raise
                # Another process was faster; its result is the same.
    except OSError as error:
        raise DataError(
            f"the prepared corpus cannot be written to {folder}: {error.strerror or error}; make room there, or set "
            "data.cache_dir (or STORYTELLER_CACHE) to a folder that can be written, and run again"
        ) from error
    return key


def find_corpus(run: RunConfig, log: Callable[[str], None]) -> Path:
    """The cache folder with the corpus of a run, after checking all shards; does not prepare one.

    Args:
        run: see prepare_corpus.
        log: gets a line if the text takes long to read.

    Raises:
        NotPrepared: the cache has no such corpus.
        DataError: it is damaged, or the text cannot be read.
    """
    sources, given = choose_sources(run.data), given_tokenizer(run.tokenizer, run.data.cache_dir)
    folder, problem = _looked_up(run, sources, given, log)
    if problem == "":
        raise NotPrepared(f"nothing is prepared of {run.data.source_name}: there is no {folder}; a run prepares it")
    if problem is not None:
        raise DataError(f"the prepared corpus {folder} is damaged ({problem}); the next run makes it again")
    return folder


def open_corpus(run: RunConfig, key: str) -> Corpus:
    """Open the corpus that prepare_corpus made and named `key`, after checking all shards.

    Raises:
        DataError: something in it is missing or damaged; prepare_corpus prepares it again.
    """
    folder = cache_folder(run.data.cache_dir) / key
    try:
        return _opened(folder, run.tokenizer.vocab_size)
    except _DAMAGE as error:
        raise DataError(f"the prepared corpus {folder} is damaged ({error}); remove the folder and run again") from None


def _opened(folder: Path, vocab_size: int) -> Corpus:
    index, tokenizer = read_index(folder, CorpusIndex)

    def stream(names: list[str], most: int) -> TokenStream:
        return TokenStream([open_listed_shard(folder, name, index, most) for name in names])

    train, validation = stream(index.train.shards, vocab_size), stream(index.validation.shards, vocab_size)
    if tokenizer.spells_bytes:
        text = TextBytes(validation, tokenizer.token_bytes(vocab_size))
    else:
        counts = stream(index.validation.byte_shards or [], MOST_BYTES_OF_A_TOKEN)
        if len(counts) != len(validation):
            raise UntrustedFileError(f"{folder / INDEX}: {len(counts)} byte counts for {len(validation)} tokens")
        text = TextBytes(counts)

    def prompts(split: SplitIndex) -> NDArray[np.int64] | None:
        if split.prompt_shards is None:
            return None
        return stream(split.prompt_shards, MOST_TOKENS_OF_A_PROMPT).read(0, split.documents)

    return Corpus(
        tokenizer,
        train,
        validation,
        text,
        prompts(index.train),
        prompts(index.validation),
        index.train,
        index.validation,
        index.fingerprint,
    )


def _looked_up(
    run: RunConfig, sources: Sources, given: Tokenizer | None, log: Callable[[str], None]
) -> tuple[Path, str | None]:
    """The folder of a corpus, and why it must be made; see _problem."""
    with meanwhile(lambda: log(f"reading {run.data.source_name}"), LINE_EVERY_S):
        folder = cache_folder(run.data.cache_dir) / _key(run, sources, given)
    with meanwhile(lambda: log("checking the prepared corpus"), LINE_EVERY_S):
        return folder, _problem(folder, run.tokenizer.vocab_size)


def _problem(folder: Path, vocab_size: int) -> str | None:
    """Why the corpus must be made: the damage, or "" if there is no corpus yet; None: it is intact."""
    if not os.path.lexists(folder):
        return ""
    try:
        _opened(folder, vocab_size)
    except _DAMAGE as error:
        return str(error)
    return None


def _fill(
    run: RunConfig, sources: Sources, given: Tokenizer | None, key: str, work: Path, log: Callable[[str], None]
) -> None:
    try:
        make_corpus(run, sources, given, work, log)
        # The text was read several times since the key was computed; new sources have nothing cached.
        with meanwhile(lambda: log(f"checking that {run.data.source_name} has not changed"), LINE_EVERY_S):
            if _key(run, choose_sources(run.data), given) != key:
                names = " or ".join(filter(None, (run.data.source_name, run.data.validation)))
                raise DataError(
                    f"{names} was changed while it was prepared, and nothing of that is kept; run again when it stays "
                    "as it is"
                )
    except (DataError, OSError):  # not after an interruption: the next attempt continues
        shutil.rmtree(work, ignore_errors=True)
        raise


def _key(run: RunConfig, sources: Sources, given: Tokenizer | None) -> str:
    """Name of the cache folder, which changes with anything that would change the tokens; reads the sources once."""
    tokenizer = run.tokenizer
    special = f"/{json.dumps(tokenizer.special_tokens)}" if tokenizer.special_tokens else ""
    tokens = given.fingerprint if given else f"{tokenizer.kind}/{tokenizer.vocab_size}{special}"
    # The shard version is in this key but not in the fingerprint: the tokens are the same, and old runs continue.
    parts = (FORMAT, SHARD_VERSION, sources.train.fingerprint, sources.validation.fingerprint, tokens)
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:24]
