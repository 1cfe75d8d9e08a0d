"""Facts about a text: from the prepared corpus, or estimated from what is read of the sources in a second or two."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from storyteller_ds.config import RunConfig
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.data.sources.choose import Sources
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.tokenizers.choose import TRAINERS, train_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer

_CHARACTERS_OF_A_TOKEN = 4.0
"""Characters per token of GPT-2's tokenizer, used before it is downloaded (docs/tokenizers.md)."""
_MOST_DOCUMENTS = 50_000
_ENCODED = 1000
"""Documents from which the number of tokens in all others is estimated."""


@dataclass(frozen=True)
class Sample:
    """The beginning of a source."""

    documents: tuple[str, ...]
    is_all: bool
    """Whether that is the whole source."""


@dataclass(frozen=True)
class TextFacts:
    """How much text there is, as the model sees it."""

    train_tokens: float | None
    """None: the text is longer than what was read of it."""
    tokens_per_story: float
    validation_tokens: float | None
    vocabulary: int | None = None
    """Tokens that the tokenizer has; None: it is not trained yet."""
    unknown: float = 0.0
    """Fraction of the tokens that stand for text the tokenizer does not know."""
    bytes_per_token: float | None = None
    """None: unknown, as for a corpus whose text was not counted."""
    sequences: int | None = None
    """Sequences that the training text is packed into; None: not prepared yet."""
    is_estimate: bool = False
    train: Sample | None = None
    """Stories, if the text itself was read."""
    validation: Sample | None = None

    @property
    def most_train_tokens(self) -> float:
        """Most tokens that the training text can have with any tokenizer: one per byte, and one per end of story."""
        if self.train is None or not self.train.is_all:
            return math.inf
        return sum(len(document.encode(errors="replace")) + 1 for document in self.train.documents)

    @property
    def about(self) -> str:
        """The word to put before numbers."""
        return "about " if self.is_estimate else ""


def facts_of_corpus(
    corpus: Corpus, sequences: int, train: Sample | None = None, validation: Sample | None = None
) -> TextFacts:
    """Exact facts.

    Args:
        corpus: a prepared corpus.
        sequences: number of sequences that its training text is packed into.
        train: stories from it, for the checks that compare texts.
        validation: likewise.
    """
    return TextFacts(
        len(corpus.train),
        len(corpus.train) / max(1, corpus.train_size.documents),
        len(corpus.validation),
        corpus.tokenizer.vocab_size,
        corpus.validation_size.unknown_tokens / max(1, len(corpus.validation)),
        corpus.train_size.bytes / len(corpus.train) if corpus.train_size.bytes else None,
        sequences,
        train=train,
        validation=validation,
    )


def facts_of_sources(run: RunConfig, tokenizer: Tokenizer | None, train: Sample, validation: Sample) -> TextFacts:
    """Estimates for a text that is not prepared.

    Args:
        run: the run config.
        tokenizer: the one it is given; None: the run will train one, so here one is trained on the sample.
        train: the beginning of the training text, at least one document.
        validation: likewise; may be empty.

    Raises:
        DataError: no tokenizer of these settings can be trained.
    """
    some = train.documents[:: max(1, len(train.documents) // _ENCODED)][:_ENCODED]
    characters, count, unknown = sum(map(len, some)), 0, 0
    if tokenizer is not None or run.tokenizer.kind in TRAINERS:
        used = tokenizer or train_tokenizer(run.tokenizer, some)
        encoded = used.encode_batch(list(some))
        count = sum(map(len, encoded))
        unknown = 0 if used.unknown is None else sum(ids.count(used.unknown) for ids in encoded)
    count = max(1, count or round(characters / _CHARACTERS_OF_A_TOKEN))
    per_character = count / max(1, characters)

    def tokens(sample: Sample, whole: int | None) -> tuple[float | None, float]:
        each = sum(map(len, sample.documents)) * per_character / max(1, len(sample.documents)) + 1
        stories = len(sample.documents) if sample.is_all else whole
        return (None if stories is None else stories * each), each

    made = run.data.builtin_stories if run.data.source == "builtin" else None
    total, each = tokens(train, made)
    held_out, _ = tokens(validation, None if made is None else math.ceil(made / 20))
    return TextFacts(
        total,
        each,
        held_out,
        None if tokenizer is None else tokenizer.vocab_size,
        unknown / count,
        sum(len(document.encode(errors="replace")) for document in some) / count,
        is_estimate=True,
        train=train,
        validation=validation,
    )


def sample_of(source: Source, seconds: float, most: int = _MOST_DOCUMENTS) -> Sample:
    """The beginning of a source, as much as can be read in this many seconds.

    Raises:
        DataError: it cannot be read.
    """
    end, documents = time.monotonic() + seconds, iter(source.documents())

    def in_time() -> Iterator[str]:
        for document in islice(documents, most):
            yield document
            if time.monotonic() > end:
                return

    read = tuple(in_time())
    return Sample(read, next(documents, None) is None)


def samples_of(sources: Sources, seconds: float) -> tuple[Sample, Sample]:
    """Samples of the training text and of the validation text, each read in half of the time.

    Raises:
        DataError: one of them cannot be read.
    """
    return sample_of(sources.train, seconds / 2), sample_of(sources.validation, seconds / 2)
