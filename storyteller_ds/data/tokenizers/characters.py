"""A tokenizer with one token per character."""

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from storyteller_ds.data.tokenizers.tokenizer import UNKNOWN, Tokenizer
from storyteller_ds.errors import DataError


def train_characters(vocab_size: int, special_tokens: Sequence[str], documents: Iterable[str]) -> Tokenizer:
    """Make a tokenizer of the most frequent characters of a corpus; all others become UNKNOWN.

    Args:
        vocab_size: maximum number of tokens, including UNKNOWN and the special ones.
        special_tokens: END_OF_TEXT comes first.
        documents: the corpus.

    Raises:
        DataError: vocab_size is too small.
    """
    special = list(dict.fromkeys([special_tokens[0], UNKNOWN, *special_tokens]))
    if vocab_size < len(special):
        raise DataError(
            f"tokenizer.vocab_size={vocab_size} has no room for {', '.join(special)}; use {len(special) + 1} or more"
        )
    inner = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    inner.train_from_iterator(documents, trainer)
    return Tokenizer(inner)
