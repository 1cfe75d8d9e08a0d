"""Trains SentencePiece's BPE: words begin with their space, and characters that are not tokens become their bytes.

The result consists of tokens with scores (scored.py), as llama2.c and llama.cpp read them.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from storyteller_ds.data.tokenizers.scored import BYTE_TOKENS, FIRST_TEXT, ScoredToken, make_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import BYTES, Tokenizer
from storyteller_ds.errors import DataError

_WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|[\r\n]+|\s"
"""A token lies within one match: a word, a digit or punctuation with the space before it, line ends, or a space."""
_LETTERS = 1 / 4
"""Single characters get at most this share of the room, if there is something else to learn; rarer ones are spelled in
bytes. (The library's own limit chooses among equally frequent ones at random.)"""
_SPARE = 10_000
"""Number of extra tokens to train, to replace those with characters that are left out."""


def train_sentencepiece(vocab_size: int, special_tokens: Sequence[str], documents: Iterable[str]) -> Tokenizer:
    """Train a new tokenizer on a corpus.

    Args:
        vocab_size: maximum number of tokens.
        special_tokens: END_OF_TEXT comes first; the others get the last ids.
        documents: the corpus.

    Raises:
        DataError: vocab_size is too small.
    """
    end_of_text, *others = special_tokens
    room = vocab_size - FIRST_TEXT - len(others)
    if room < 1:
        raise DataError(
            f"tokenizer.vocab_size={vocab_size} has no room for the {BYTES} bytes, the space and "
            f"{FIRST_TEXT - BYTES + len(others)} tokens that are not text; use {FIRST_TEXT + len(others) + 1} or more, "
            "or tokenizer.kind=char"
        )
    inner = tokenizers.Tokenizer(models.BPE())
    inner.normalizer = normalizers.Prepend(" ")
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=room + _SPARE, initial_alphabet=[" "], show_progress=False)
    counts: Counter[str] = Counter()
    inner.train_from_iterator(_counted(documents, counts), trainer)
    most_frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))
    letters = list(dict.fromkeys([" ", *most_frequent]))
    most = max(1, int(room * _LETTERS))
    pairs = json.loads(inner.to_str())["model"]["merges"]
    unions = dict.fromkeys(union for pair in pairs if set(union := "".join(pair)) <= set(letters[:most]))
    most = max(most, room - len(unions))
    texts = [*itertools.islice(unions, room - len(letters[:most])), *letters[:most]]
    # SentencePiece has no order of merges: the better score goes first.
    head = [ScoredToken(text, 0.0) for text in ("<unk>", end_of_text, "</s>", *BYTE_TOKENS)]
    return make_tokenizer([*head, *(ScoredToken(text, -float(rank)) for rank, text in enumerate(texts))], others)


def _counted(documents: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    """Yield the documents, counting their characters."""
    for document in documents:
        counts.update(document)
        yield document
