"""From documents to token ids."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.prompted import prompt_of
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer


class EncodedDocument(NamedTuple):
    """A document in tokens, without the separator after it."""

    ids: list[int]
    byte_counts: NDArray[np.int64]
    """[len(ids) + 1] UTF-8 bytes of the text that each token stands for, and those after the last; empty if they are
    not recorded."""
    prompt_tokens: int
    """How many of the first ids belong to the prompt."""


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> list[EncodedDocument]:
    """Encode documents; prompt and story are encoded separately, so that a prompt has the same tokens as by itself."""
    prompts = [prompt_of(document) for document in documents]
    if not any(prompts):
        return [EncodedDocument(*each, 0) for each in tokenizer.encode_with_bytes(documents)]
    stories = [document[len(prompt) :] for document, prompt in zip(documents, prompts, strict=True)]
    pairs = zip(tokenizer.encode_with_bytes(prompts), tokenizer.encode_with_bytes(stories), strict=True)
    return [
        EncodedDocument([*before, *ids], np.concatenate([before_bytes[:-1], byte_counts]), len(before))
        for (before, before_bytes), (ids, byte_counts) in pairs
    ]
