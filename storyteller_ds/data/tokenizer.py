"""Text to token ids and back, with the `tokenizers` library."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.errors import DataError

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
BYTES = 256


class Tokenizer:
    """A trained tokenizer. Token END_OF_TEXT separates documents and is never made from text.

    Raises:
        DataError: the vocabulary has no END_OF_TEXT.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        # Text that happens to contain "<|endoftext|>" is text.
        self._inner.encode_special_tokens = True
        end = inner.token_to_id(END_OF_TEXT)
        if end is None:
            raise DataError(f"the tokenizer has no {END_OF_TEXT} token; add it as a special token")
        self.end_of_text: int = end

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids are below it."""
        size: int = self._inner.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer's JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        text: str = self._inner.to_str()
        return text

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without END_OF_TEXT."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts; uses all cores."""
        return [e.ids for e in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, END_OF_TEXT left out."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, vocab_size: int) -> NDArray[np.int64]:
        """[vocab_size] UTF-8 bytes that each id stands for; 0 for special tokens and ids without a token."""
        sizes = np.zeros(vocab_size, dtype=np.int64)
        is_byte_level = isinstance(self._inner.decoder, decoders.ByteLevel)
        for token, i in self._inner.get_vocab(with_added_tokens=False).items():
            # In a byte-level vocabulary each character of a token's name stands for one byte.
            sizes[i] = len(token) if is_byte_level else len(token.encode())
        for i, added in self._inner.get_added_tokens_decoder().items():
            # Added tokens stand for their own text, special ones for none.
            sizes[i] = 0 if added.special else len(added.content.encode())
        unknown = self._inner.token_to_id(UNKNOWN)
        if unknown is not None:
            sizes[unknown] = 1
        return sizes


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from a tokenizer.json.

    Raises:
        DataError: the file is missing or not a tokenizer.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"tokenizer {path} cannot be read: {error}; check tokenizer.path") from None
    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # the library raises plain Exception for a bad file
        raise DataError(f"{path} is not a tokenizer.json ({str(error).splitlines()[0]}); train a new one") from None


def train_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """A new tokenizer from a corpus; the same documents give the same tokenizer.

    Raises:
        DataError: vocab_size is too small for the kind.
    """
    if config.kind == "char":
        return _train_char(config.vocab_size, documents)
    if config.vocab_size <= BYTES:
        raise DataError(
            f"tokenizer.vocab_size={config.vocab_size} has no room for the {BYTES} bytes and {END_OF_TEXT}; "
            f"use {BYTES + 1} or more, or tokenizer.kind=char"
        )
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(documents, trainer)
    return Tokenizer(inner)


def _train_char(vocab_size: int, documents: Iterable[str]) -> Tokenizer:
    """One token a character, the most frequent ones; the others become UNKNOWN."""
    inner = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT, UNKNOWN], show_progress=False
    )
    inner.train_from_iterator(documents, trainer)
    return Tokenizer(inner)
