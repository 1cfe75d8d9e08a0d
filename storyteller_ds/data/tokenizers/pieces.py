"""What the tokens of a vocabulary stand for, and how a text is cut into them."""

import json
import re
from typing import NamedTuple

from storyteller_ds.data.tokenizers.scored import scored_tokens
from storyteller_ds.data.tokenizers.tokenizer import BYTES, Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, BYTES)]
_HIDDEN = [byte for byte in range(BYTES) if byte not in _SHOWN]
BYTE_OF_LETTER = {chr(byte): byte for byte in _SHOWN} | {chr(BYTES + i): byte for i, byte in enumerate(_HIDDEN)}
"""Byte-level BPE writes a byte as a character: itself if that is visible, else the next one from U+0100 on."""


class Piece(NamedTuple):
    """A token of a text, or of a vocabulary."""

    id: int
    content: bytes
    """The bytes that it stands for; empty if it is not text."""

    def __str__(self) -> str:
        """The text with invisible characters escaped, and bytes that are not text as <F0>."""
        text = self.content.decode(errors="surrogateescape")
        return "".join(_shown(character) for character in text)


def kind_of(tokenizer: Tokenizer) -> str:
    """The kind of a tokenizer, in words."""
    if tokenizer.spells_bytes:
        return "byte-level BPE"
    state = json.loads(tokenizer.to_json())
    if state["model"]["type"] == "WordLevel" and state["pre_tokenizer"] and state["pre_tokenizer"]["type"] == "Split":
        return "characters"
    if scored_tokens(tokenizer) is not None or state["model"].get("byte_fallback"):
        return "BPE with byte fallback"
    return f"{state['model']['type']}, from elsewhere"


def pieces(tokenizer: Tokenizer) -> dict[int, bytes]:
    """What each token stands for within a text, by id; special tokens are left out."""
    special = set(tokenizer.special_tokens.values())
    names = {i: name for i in range(tokenizer.vocab_size) if (name := tokenizer.name(i)) is not None}
    ordinary = {i: name for i, name in names.items() if i not in special}
    if tokenizer.spells_bytes:
        letters = BYTE_OF_LETTER
        return {
            i: bytes(letters[c] for c in name) if letters.keys() >= set(name) else name.encode()  # an added token
            for i, name in ordinary.items()
        }
    before = tokenizer.encode("a")  # some tokenizers drop a space at the beginning of a text
    start = tokenizer.decode(before)
    found = {}
    for i, name in ordinary.items():
        text = tokenizer.decode([*before, i]).removeprefix(start)
        byte = _BYTE.fullmatch(name)
        found[i] = bytes([int(byte[1], 16)]) if byte and text != name else text.encode()
    return found


def cut(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """The tokens of a text; unknown ones have empty content."""
    contents = pieces(tokenizer)
    return [Piece(i, contents.get(i, b"")) for i in tokenizer.encode(text)]


def unreachable(tokenizer: Tokenizer) -> list[Piece]:
    """Tokens that their own text is not encoded to, neither by itself nor on a new line.

    Tokens that are only part of a character are left out.
    """
    texts = {}
    for i, content in pieces(tokenizer).items():
        try:
            texts[i] = content.decode()
        except UnicodeDecodeError:
            continue
    alone = tokenizer.encode_batch(list(texts.values()))
    behind = tokenizer.encode_batch([f"\n{text}" for text in texts.values()])
    return [
        Piece(i, text.encode())
        for (i, text), first, second in zip(texts.items(), alone, behind, strict=True)
        if first != [i] and second[-1:] != [i]
    ]


def _shown(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not text, as decoded by surrogateescape
        return f"<{ord(character) - 0xDC00:02X}>"
    return character if character.isprintable() else ascii(character)[1:-1]
