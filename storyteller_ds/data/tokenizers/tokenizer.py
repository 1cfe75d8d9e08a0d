"""Text to token ids and back: the class of every kind of tokenizer, wrapping one of the `tokenizers` library."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, pre_tokenizers

from storyteller_ds.data.text_bytes import aligned_bytes
from storyteller_ds.errors import DataError

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
BYTES = 256
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""The name of a token for one byte; several in a row are decoded together (SentencePiece's byte fallback)."""


class Tokenizer:
    """A trained tokenizer, whose token END_OF_TEXT separates documents and is never produced from text.

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
        """All ids are below it; equal to the number of tokens if no id is skipped."""

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Tokens that are not text, with their ids."""
        added = self._inner.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    def is_forged(self, token: str) -> bool:
        """Whether text that spells a special token is encoded as that token, which it should not be."""
        i = self.special_tokens[token]
        # The unknown token stands for anything unknown, which may include its own name.
        return i != self.unknown and any(i in self.encode(text) for text in (token, f"a {token} b", f"a{token}b"))

    def name(self, i: int) -> str | None:
        """The vocabulary's name for an id; None: no token has it."""
        found: str | None = self._inner.id_to_token(i)
        return found

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
        """The text of the ids, without END_OF_TEXT and other special tokens."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=True)
        return text

    def encode_with_bytes(self, texts: Sequence[str]) -> list[tuple[list[int], NDArray[np.int64]]]:
        """Ids of several texts, with the bytes of text that each stands for (see aligned_bytes)."""
        encodings = self._inner.encode_batch(list(texts), add_special_tokens=False)
        return [(each.ids, aligned_bytes(text, each.offsets)) for text, each in zip(texts, encodings, strict=True)]

    @cached_property
    def spells_bytes(self) -> bool:
        """Whether a token always stands for the same bytes, and the tokens of any text add up to its bytes.

        True for byte-level BPE without a normalizer: ours and GPT-2's.
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
        """[vocab_size] UTF-8 bytes that each id stands for, for a tokenizer that spells bytes.

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
        """Whether text that ends with this id stays the same, whatever ids follow.

        If so, the ids that follow have the same text after this id alone as after all ids before them. The caller must
        check for an incomplete character at the end separately.
        """
        return self._decodes_one_by_one and not _BYTE.fullmatch(self._inner.id_to_token(i) or "")

    @cached_property
    def _decodes_one_by_one(self) -> bool:
        """Whether a token's text depends on no other token, except on whether one precedes it, and except for bytes."""
        return _is_one_by_one(json.loads(self.to_json())["decoder"])

    @property
    def unknown(self) -> int | None:
        """Id of the unknown token; None: there is none."""
        model = json.loads(self.to_json())["model"]
        token = model.get("unk_token")
        found: int | None = model.get("unk_id") if token is None else self._inner.token_to_id(token)
        return found


def _is_one_by_one(decoder: dict[str, Any] | None) -> bool:
    """Tokenizer._decodes_one_by_one for the JSON of a decoder."""
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
