"""Figures of a text: of the prepared corpus, or estimated from as much of the sources as is read in a second or two."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from storyteller_ds.config import RunConfig
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.data.sources.choose import Sources
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer

_CHARACTERS_OF_A_TOKEN = 4.0
"""Of a byte-level BPE with some thousand tokens on stories; docs/tokenizers.md has 3.6 to 4.3."""
_MOST_DOCUMENTS = 50_000
_ENCODED = 100
"""Documents by which the tokens of the others are estimated."""


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
    sequences: int | None = None
    """That the training text is packed into; None: not prepared yet."""
    is_estimate: bool = False
    train: Sample | None = None
    """Stories, where the text itself was read."""
    validation: Sample | None = None

    @property
    def about(self) -> str:
        """A word before figures."""
        return "about " if self.is_estimate else ""


def facts_of_corpus(
    corpus: Corpus, sequences: int, train: Sample | None = None, validation: Sample | None = None
) -> TextFacts:
    """Exact figures.

    Args:
        corpus: prepared.
        sequences: that its training text is packed into.
        train: stories of it, for the checks that compare texts.
        validation: likewise.
    """
    return TextFacts(
        len(corpus.train),
        len(corpus.train) / max(1, corpus.train_size.documents),
        len(corpus.validation),
        corpus.tokenizer.vocab_size,
        sequences,
        train=train,
        validation=validation,
    )


def facts_of_sources(run: RunConfig, tokenizer: Tokenizer | None, train: Sample, validation: Sample) -> TextFacts:
    """Estimates of a text that is not prepared.

    Args:
        run: its config.
        tokenizer: which it is given; None: it will train one.
        train: the beginning of the training text; a source that cannot be read raises DataError before.
        validation: likewise.
    """
    per_token = 1.0 if run.tokenizer.kind == "char" else _CHARACTERS_OF_A_TOKEN
    if tokenizer is not None and (some := list(train.documents[:_ENCODED])):
        per_token = sum(map(len, some)) / max(1, sum(map(len, tokenizer.encode_batch(some))))

    def tokens(sample: Sample, whole: int | None) -> tuple[float | None, float]:
        characters = sum(map(len, sample.documents))
        each = characters / per_token / max(1, len(sample.documents)) + 1
        stories = len(sample.documents) if sample.is_all else whole
        return (None if stories is None else stories * each), each

    made = run.data.builtin_stories if run.data.source == "builtin" else None
    total, each = tokens(train, made)
    held_out, _ = tokens(validation, None if made is None else math.ceil(made / 20))
    vocabulary = None if tokenizer is None else tokenizer.vocab_size
    return TextFacts(total, each, held_out, vocabulary, None, True, train, validation)


def sample_of(source: Source, seconds: float, most: int = _MOST_DOCUMENTS) -> Sample:
    """The beginning of a source, as far as one gets in so many seconds.

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
    """Of the training text and of the validation text, each in half of the time.

    Raises:
        DataError: one of them cannot be read.
    """
    return sample_of(sources.train, seconds / 2), sample_of(sources.validation, seconds / 2)
