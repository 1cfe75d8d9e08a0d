"""Turns the documents of the sources into a tokenizer, token shards and an index."""

import contextlib
import hashlib
import itertools
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus_index import (
    INDEX,
    TOKENIZER,
    UnfinishedIndex,
    open_listed_shard,
    read_index,
    write_index,
)
from storyteller_ds.data.encoding import EncodedDocument, encode_documents
from storyteller_ds.data.shards import open_shard, shard_name, write_shards
from storyteller_ds.data.sources.choose import Sources
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.data.work_folder import LOCK
from storyteller_ds.errors import DataError
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.untrusted import UntrustedFileError

FORMAT = 1
"""Raise it whenever the same text would give different tokens."""
SHARD_TOKENS = 100_000_000
MOST_BYTES_OF_A_TOKEN = 1 << 32
MOST_TOKENS_OF_A_PROMPT = 1 << 32
_DOCUMENTS_AT_ONCE = 1000
_CHARACTERS_AT_ONCE = 1 << 22
"""A batch also ends at this size, so that it never holds a thousand books."""
_BATCHES_AHEAD = 2
"""Batches that are encoded while one is written: two, because turning one into Python lists uses only one core."""
_NOT_COUNTED = np.empty(0, dtype=np.int64)

Log = Callable[[str], None]
Result = TypeVar("Result")


def make_corpus(run: RunConfig, sources: Sources, given: Tokenizer | None, folder: Path, log: Log) -> None:
    """Fill a folder, keeping what an earlier attempt at the same text has finished in it.

    Args:
        run: its tokenizer section and data.prompt are used.
        sources: the text.
        given: the tokenizer to use; None: train one.
        folder: no other process writes to it; anything else in it is removed.
        log: gets a line about each step.

    Raises:
        DataError: the text or the tokenizer cannot be used.
        OSError: the folder cannot be written.
    """
    with meanwhile(lambda: log(f"reading {sources.train.name}"), LINE_EVERY_S):
        for remark in sources.remarks():
            log(remark)
    tokenizer, finished = _left_behind(folder, run.tokenizer.vocab_size)
    if run.data.prompt is not None:
        finished = []  # the lengths of the prompts in them are not known
    _remove_all_but(folder, [LOCK, *([INDEX, TOKENIZER, *finished] if tokenizer else [])])
    if tokenizer is not None:
        log(f"taking over what is already prepared: tokenizer, {len(finished)} finished shard(s)")
    elif given is not None:
        tokenizer = given
    else:
        tally = Tally(f"training a {run.tokenizer.kind} tokenizer on {sources.train.name}", log)
        with tally.logged():
            tokenizer = train_tokenizer(run.tokenizer, tally.counted(sources.train.documents()))
    write_index(folder, tokenizer, {})
    rows, prompted = run.tokenizer.vocab_size, run.data.prompt is not None
    parts = (FORMAT, sources.train.fingerprint, sources.validation.fingerprint, tokenizer.fingerprint)
    index = {
        "train": _Split("train", sources.train, tokenizer, prompted, log).write(folder, rows, finished),
        "validation": _Split("validation", sources.validation, tokenizer, prompted, log).write(folder, rows, []),
        "fingerprint": hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest(),
    }
    write_index(folder, tokenizer, index)


def _left_behind(folder: Path, vocab_size: int) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer and the training shards that an earlier attempt left intact."""
    try:
        index, tokenizer = read_index(folder, UnfinishedIndex)
    except (UntrustedFileError, OSError):
        return None, []
    shards: list[str] = []
    # A partly written shard does not match its header.
    with contextlib.suppress(DataError, UntrustedFileError, OSError):
        while True:
            name = shard_name("train", len(shards))
            open_listed_shard(folder, name, index, vocab_size)
            shards.append(name)
    return tokenizer, shards


def _remove_all_but(folder: Path, names: Iterable[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


class Tally:
    """Counts documents, and logs the count from time to time.

    Args:
        doing: what is being done with them.
        log: gets the lines.
    """

    def __init__(self, doing: str, log: Log) -> None:
        self._doing, self._log = doing, log
        self.documents, self.bytes = 0, 0

    @contextlib.contextmanager
    def logged(self) -> Iterator[None]:
        """Log what is being done, and the progress if the block takes long."""
        self._log(self._doing)
        with meanwhile(lambda: self._log(f"{self._doing}: {self}"), LINE_EVERY_S):
            yield

    def counted(self, documents: Iterable[str]) -> Iterator[str]:
        """Yield the documents, counting each."""
        for document in documents:
            self.documents += 1
            self.bytes += len(document.encode())
            yield document

    def __str__(self) -> str:
        return f"{self.documents:,} stories, {self.bytes / 1e6:,.1f} MB so far"


class _Split:
    """Writes one split as shards.

    Args:
        name: train or validation; for validation, bytes are counted per token if the tokenizer does not spell bytes.
        source: its text.
        tokenizer: makes the tokens.
        prompted: whether documents may have prompts.
        log: gets lines about the progress.
    """

    def __init__(self, name: str, source: Source, tokenizer: Tokenizer, prompted: bool, log: Log) -> None:
        self._name, self._source, self._tokenizer = name, source, tokenizer
        self._tally = Tally(f"tokenizing {source.name} for {name}", log)
        self._records_bytes = name == "validation" and not tokenizer.spells_bytes
        self._byte_counts: list[NDArray[np.uint32]] = []
        self._is_prompted = prompted
        self._prompt_sizes: list[list[int]] = []
        self._unknown_tokens = 0

    def write(self, folder: Path, vocab_size: int, finished: list[str]) -> dict[str, Any]:
        """Write the shards, and return the split's entry for the index.

        Args:
            folder: where the shards go.
            vocab_size: all ids are below it.
            finished: the first shards, which exist already.

        Raises:
            DataError: the source has no document, or cannot be read.
        """
        passed_over = self._documents_in(folder, vocab_size, finished)
        with self._tally.logged():
            documents = self._encoded(passed_over, begins=not finished)
            shards = write_shards(folder, self._name, documents, vocab_size, SHARD_TOKENS, len(finished))
        if self._tally.documents == 0:
            raise DataError(
                f"{self._source.name} has no document for {self._name}; put in stories, or name another text"
            )
        entry = {
            "source": self._source.name,
            "documents": self._tally.documents,
            "bytes": self._tally.bytes,
            "shards": [*finished, *shards],
        }
        if self._records_bytes:
            name = f"{self._name}-bytes"
            entry["byte_shards"] = write_shards(folder, name, self._byte_counts, MOST_BYTES_OF_A_TOKEN, SHARD_TOKENS)
            entry["unknown_tokens"] = self._unknown_tokens
        if self._is_prompted:
            name = f"{self._name}-prompts"
            entry["prompt_shards"] = write_shards(
                folder, name, self._prompt_sizes, MOST_TOKENS_OF_A_PROMPT, SHARD_TOKENS
            )
        return entry

    def _documents_in(self, folder: Path, vocab_size: int, shards: list[str]) -> int:
        ends = (np.count_nonzero(open_shard(folder / n, vocab_size) == self._tokenizer.end_of_text) for n in shards)
        return max(0, sum(int(count) for count in ends) - 1)  # the stream begins with an extra one

    def _encoded(self, passed_over: int, begins: bool) -> Iterator[list[int]]:
        end, unknown = self._tokenizer.end_of_text, self._tokenizer.unknown
        if begins:
            # So that the first word of the first document is predicted too.
            self._byte_counts.append(np.zeros(1, dtype=np.uint32))
            yield [end]
        texts = itertools.islice(self._tally.counted(self._source.documents()), passed_over, None)
        for batch in _ahead(self._tokens, _batches(texts)):
            for ids, byte_counts, prompt_tokens in batch:
                if self._records_bytes:
                    self._byte_counts.append(byte_counts.astype(np.uint32))
                    self._unknown_tokens += 0 if unknown is None else ids.count(unknown)
                if self._is_prompted:
                    self._prompt_sizes.append([prompt_tokens])
                ids.append(end)
                yield ids

    def _tokens(self, documents: list[str]) -> list[EncodedDocument]:
        if self._is_prompted or self._records_bytes:
            return encode_documents(self._tokenizer, documents)
        return [EncodedDocument(ids, _NOT_COUNTED, 0) for ids in self._tokenizer.encode_batch(documents)]


def _ahead(work: Callable[[list[str]], Result], batches: Iterable[list[str]]) -> Iterator[Result]:
    """The results of `work` for each batch, in order; threads work on the next ones while the caller uses one."""
    with ThreadPoolExecutor(_BATCHES_AHEAD, thread_name_prefix="encoding") as threads:
        ahead: deque[Future[Result]] = deque()
        for batch in batches:
            ahead.append(threads.submit(work, batch))
            if len(ahead) > _BATCHES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _DOCUMENTS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
