"""From documents to token ids."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.prompted import prompt_of
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer


class EncodedDocument(NamedTuple):
    """A document in tokens, without the separator behind it."""

    ids: list[int]
    byte_counts: NDArray[np.int64]
    """[len(ids) + 1] UTF-8 bytes of the text that each token stands for, and those behind the last; where they are
    recorded."""
    prompt_tokens: int
    """The first of the ids, which are the prompt's."""


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> list[EncodedDocument]:
    """Prompt and story of each are encoded apart: a prompt has the tokens that it has when it is given alone."""
    prompts = [prompt_of(document) for document in documents]
    if not any(prompts):
        return [EncodedDocument(*each, 0) for each in tokenizer.encode_with_bytes(documents)]
    stories = [document[len(prompt) :] for document, prompt in zip(documents, prompts, strict=True)]
    pairs = zip(tokenizer.encode_with_bytes(prompts), tokenizer.encode_with_bytes(stories), strict=True)
    return [
        EncodedDocument([*before, *ids], np.concatenate([before_bytes[:-1], byte_counts]), len(before))
        for (before, before_bytes), (ids, byte_counts) in pairs
    ]
