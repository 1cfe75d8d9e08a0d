"""Text to token ids and back, with the `tokenizers` library."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.text_bytes import aligned_bytes
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError, read_text

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
BYTES = 256
FILE_BYTES = 1 << 26
"""Largest tokenizer.json that is read (bytes); those of 250,000 tokens have half of it."""
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""The name of a token for one byte; several in a row are decoded together (SentencePiece's byte fallback)."""
_PRECOMPILED = re.compile(r'"type":\s*"Precompiled"')


class Tokenizer:
    """A trained tokenizer. Token END_OF_TEXT separates documents and is never made from text.

    Raises:
        DataError: the vocabulary has no END_OF_TEXT.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        # Text that happens to contain "<|endoftext|>" is text.
        self._inner.encode_special_tokens = True
        # A corpus is neither truncated nor padded, even if the file asks for it.
        self._inner.no_truncation()
        self._inner.no_padding()
        end = inner.token_to_id(END_OF_TEXT)
        if end is None:
            raise DataError(f"the tokenizer has no {END_OF_TEXT} token; add it as a special token")
        self.end_of_text: int = end
        self.vocab_size = 1 + max(inner.get_vocab(with_added_tokens=True).values())
        """All ids are below it; the number of tokens, where none of the ids between is left out."""

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

    def encode_with_bytes(self, texts: Sequence[str]) -> list[tuple[list[int], NDArray[np.int64]]]:
        """Ids of several texts, with the bytes of the text that each stands for (aligned_bytes)."""
        encodings = self._inner.encode_batch(list(texts), add_special_tokens=False)
        return [(each.ids, aligned_bytes(text, each.offsets)) for text, each in zip(texts, encodings, strict=True)]

    @cached_property
    def spells_bytes(self) -> bool:
        """Whether a token is always the same bytes, and the bytes of the tokens are those of every text.

        True of byte-level BPE without a normalizer: ours, and GPT-2's.
        """
        state = json.loads(self.to_json())
        pre_tokenizer, model = state["pre_tokenizer"] or {}, state["model"]
        added = [token for token in state["added_tokens"] if not token["special"]]
        return (
            isinstance(self._inner.decoder, decoders.ByteLevel)
            and state["normalizer"] is None
            and pre_tokenizer.get("type") == "ByteLevel"
            and not pre_tokenizer["add_prefix_space"]
            and model["type"] == "BPE"
            and not (model["continuing_subword_prefix"] or model["end_of_word_suffix"])
            and set(pre_tokenizers.ByteLevel.alphabet()) <= model["vocab"].keys()
            and not any(token["lstrip"] or token["rstrip"] for token in added)
        )

    def token_bytes(self, vocab_size: int) -> NDArray[np.int64]:
        """[vocab_size] UTF-8 bytes that each id stands for, of a tokenizer that spells bytes.

        0 for special tokens and ids without a token.
        """
        sizes = np.zeros(vocab_size, dtype=np.int64)
        for token, i in self._inner.get_vocab(with_added_tokens=False).items():
            sizes[i] = len(token)  # each character of a token's name stands for one byte
        for i, added in self._inner.get_added_tokens_decoder().items():
            # Added tokens stand for their own text, special ones for none.
            sizes[i] = 0 if added.special else len(added.content.encode())
        return sizes

    def text_is_certain_after(self, i: int) -> bool:
        """Whether text that ends with this id's stays what it is, whatever follows.

        Then what follows has the same text behind this id alone as behind all of them. Half a character at the end must
        be looked for besides.
        """
        return self._decodes_one_by_one and not _BYTE.fullmatch(self._inner.id_to_token(i) or "")

    @cached_property
    def _decodes_one_by_one(self) -> bool:
        """Whether a token's text depends on no other token, but for whether there is one before it, and for bytes."""
        return _is_one_by_one(json.loads(self.to_json())["decoder"])

    @property
    def unknown(self) -> int | None:
        """Id of the unknown token; None: there is none."""
        model = json.loads(self.to_json())["model"]
        token = model.get("unk_token")
        found: int | None = model.get("unk_id") if token is None else self._inner.token_to_id(token)
        return found


def _is_one_by_one(decoder: dict[str, Any] | None) -> bool:
    """See Tokenizer._decodes_one_by_one; of a decoder's JSON."""
    match decoder:
        case None | {"type": "ByteLevel" | "ByteFallback" | "Fuse" | "Metaspace"}:
            return True
        case {"type": "Replace", "pattern": {"String": str(text)}}:
            return len(text) == 1
        case {"type": "Strip", "start": int(start), "stop": 0}:
            return start <= 1
        case {"type": "Sequence", "decoders": list(parts)}:
            strips = [part for part in parts if part.get("type") in ("Strip", "Metaspace")]
            return len(strips) <= 1 and all(map(_is_one_by_one, parts))
    return False


def load_tokenizer(path: Path, fix: str = "check tokenizer.path, or train a new one") -> Tokenizer:
    """A tokenizer from a tokenizer.json.

    Args:
        path: of the file.
        fix: what to do if it cannot be used, for the message.

    Raises:
        DataError: the file is missing or not a tokenizer.
    """
    try:
        text = read_text(path, FILE_BYTES)
    except (OSError, UntrustedFileError) as error:
        raise DataError(f"tokenizer {path} cannot be read: {error}; {fix}") from None
    return parse_tokenizer(text, str(path), fix)


def parse_tokenizer(text: str, where: str, fix: str) -> Tokenizer:
    """A tokenizer from the content of a tokenizer.json.

    Raises:
        DataError: it is none; names `where`, and says what to do (`fix`).
    """
    try:
        # On a damaged table of such a normalizer the library panics, with lines on stderr.
        if _PRECOMPILED.search(text):
            raise ValueError("its normalizer is Precompiled, which is not supported")
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(text))
        tokenizer.decode(tokenizer.encode("Once upon a time"))  # what is wrong with some shows only then
    except BaseException as error:
        # The library raises plain Exception for a bad file, and on some the exception of a Rust panic.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).partition("\n")[0]
        raise DataError(f"{where} is not a tokenizer.json that can be used ({reason}); {fix}") from None
    return tokenizer


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
