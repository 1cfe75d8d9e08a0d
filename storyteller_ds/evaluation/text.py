"""The text that a model is evaluated on, in the model's tokens."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.data.encoding import encode_documents
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.data.stories import Stories
from storyteller_ds.data.text_bytes import TextBytes
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import DataError
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile

Log = Callable[[str], None]
_AT_ONCE = 1000
"""Stories encoded at a time."""


@dataclass(frozen=True)
class EvaluatedText:
    """Stories that a model has not been trained on, as far as is known."""

    name: str
    fingerprint: str
    """Of the text, independent of the tokenizer: the same fingerprint means the same stories."""
    tokenizer: Tokenizer
    stream: TokenStream
    """A separator, then each story followed by a separator."""
    bytes: TextBytes
    """The bytes of text that each token stands for."""
    prompts: NDArray[np.int64] | None = None
    """[stories] Number of prompt tokens of each, which are not predicted; None: there are no prompts."""
    unknown_tokens: int = 0
    """Number of unknown tokens, which stand for text that the tokenizer does not know."""

    @property
    def stories(self) -> Stories:
        """Its stories, one by one."""
        return Stories(self.stream, self.tokenizer.end_of_text)

    def story_of_each(self) -> NDArray[np.int64]:
        """[len(stream) - 1] Story, from 0, of each token but the first; a separator belongs to the story before it."""
        ends = self.stream.read(1, len(self.stream)) == self.tokenizer.end_of_text
        story_of_each: NDArray[np.int64] = np.cumsum(ends) - ends
        return story_of_each


def validation_text(corpus: Corpus, data: DataConfig) -> EvaluatedText:
    """The text that a run was validated on."""
    source = choose_sources(data).validation
    return EvaluatedText(
        source.name,
        source.fingerprint,
        corpus.tokenizer,
        corpus.validation,
        corpus.validation_bytes,
        corpus.validation_prompts,
        corpus.validation_size.unknown_tokens,
    )


def given_text(data: DataConfig, tokenizer: Tokenizer, log: Log) -> EvaluatedText:
    """The text of data.validation in a model's tokens; all of it is kept in memory (8 bytes per token).

    Raises:
        DataError: it cannot be read, or has no stories.
    """
    source = choose_sources(data).validation
    for remark in source.remarks():
        log(remark)
    ids = [np.array([tokenizer.end_of_text], dtype=np.uint32)]
    sizes = [np.zeros(1, dtype=np.uint32)]
    prompts: list[int] = []
    with meanwhile(lambda: log(f"tokenizing {source.name}: {len(prompts):,} stories"), LINE_EVERY_S):
        documents = source.documents()
        while batch := list(itertools.islice(documents, _AT_ONCE)):
            for story, byte_counts, prompt_tokens in encode_documents(tokenizer, batch):
                ids.append(np.array([*story, tokenizer.end_of_text], dtype=np.uint32))
                sizes.append(byte_counts.astype(np.uint32))
                prompts.append(prompt_tokens)
    if not prompts:
        raise DataError(f"{source.name} has no stories; put some in, or give another text with --data")
    unknown = 0 if tokenizer.unknown is None else sum(int((each == tokenizer.unknown).sum()) for each in ids)
    return EvaluatedText(
        source.name,
        source.fingerprint,
        tokenizer,
        TokenStream([np.concatenate(ids)]),
        TextBytes(TokenStream([np.concatenate(sizes)])),
        np.array(prompts) if any(prompts) else None,
        unknown,
    )
