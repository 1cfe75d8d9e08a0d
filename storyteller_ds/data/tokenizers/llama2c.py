"""tokenizer.bin of llama2.c: the longest token's length (uint32), then each token's score (fp32), length and bytes.

Source: karpathy/llama2.c, tokenizer.py (export) and run.c (build_tokenizer).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from storyteller_ds.data.tokenizers.scored import BEGIN, ScoredToken, make_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import FILE_BYTES
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError, read_bytes, refuse_pickle

MOST_BYTES = 256
"""Maximum length of a token (bytes); SentencePiece by default makes none of more than 16 characters."""
_BEGIN = "\n<s>\n"
"""The text of token BEGIN."""


def read_tokenizer(path: Path, fix: str) -> Tokenizer:
    """Read the tokenizer in a file.

    Args:
        path: path of the file.
        fix: what to do if it cannot be used, for the error message.

    Raises:
        DataError: it cannot be read, is damaged, or is of another kind.
    """
    try:
        refuse_pickle(path, by_name=False)
        tokens = _parse(read_bytes(path, FILE_BYTES))
        if len(tokens) > BEGIN and tokens[BEGIN].text == _BEGIN:
            tokens[BEGIN] = ScoredToken(END_OF_TEXT, 0.0)
        return make_tokenizer(tokens)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {fix}") from None
    except UntrustedFileError as error:
        raise DataError(f"{error}; {fix}") from None
    except DataError as error:
        raise DataError(f"{path} is not a tokenizer.bin of llama2.c's that can be used: {error}; {fix}") from None


def write_tokenizer(tokens: Sequence[ScoredToken], path: Path) -> None:
    """Write tokens to a file; END_OF_TEXT gets llama2.c's name for it."""
    texts = [(_BEGIN if i == BEGIN else token.text).encode() for i, token in enumerate(tokens)]
    parts = [struct.pack("<I", max(map(len, texts)))]
    for text, token in zip(texts, tokens, strict=True):
        parts += [struct.pack("<fI", token.score, len(text)), text]
    path.write_bytes(b"".join(parts))


def _parse(content: bytes) -> list[ScoredToken]:
    tokens: list[ScoredToken] = []
    place = 4
    while place < len(content):
        start = place + 8
        if start > len(content):
            raise DataError(f"it ends within token {len(tokens)}")
        score, length = struct.unpack_from("<fI", content, place)
        if length > MOST_BYTES:  # every way to split it will be tried
            raise DataError(f"token {len(tokens)} would have {length:,} bytes, and {MOST_BYTES} are the most")
        place = start + length
        if place > len(content):
            raise DataError(f"it ends within token {len(tokens)}")
        try:
            tokens.append(ScoredToken(content[start:place].decode(), score))
        except UnicodeDecodeError:
            raise DataError(f"token {len(tokens)} is not UTF-8") from None
    return tokens
