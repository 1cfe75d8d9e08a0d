"""Byte-level BPE (Radford et al. 2019): text is bytes, and frequent neighbors within a word become one token."""

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from storyteller_ds.data.tokenizers.tokenizer import BYTES, Tokenizer
from storyteller_ds.errors import DataError


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """A tokenizer of the `tokenizers` library, with GPT-2's rules for where words end."""
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def train_byte_level(vocab_size: int, special_tokens: Sequence[str], documents: Iterable[str]) -> Tokenizer:
    """Train a new tokenizer on a corpus.

    Args:
        vocab_size: maximum number of tokens.
        special_tokens: get the first ids, in this order; END_OF_TEXT is one of them.
        documents: the corpus.

    Raises:
        DataError: vocab_size is too small.
    """
    least = BYTES + len(special_tokens)
    if vocab_size < least:
        raise DataError(
            f"tokenizer.vocab_size={vocab_size} has no room for the {BYTES} bytes and {', '.join(special_tokens)}; "
            f"use {least} or more, or tokenizer.kind=char"
        )
    inner = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(documents, trainer)
    return Tokenizer(inner)
