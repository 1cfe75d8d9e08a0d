"""Reads tokenizer.json, the format of the `tokenizers` library in which every tokenizer is stored."""

import re
from pathlib import Path

import tokenizers

from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import UntrustedFileError, read_text

FILE_BYTES = 1 << 26
"""Largest tokenizer.json that is read (bytes); those with 250,000 tokens are half this size."""
_PRECOMPILED = re.compile(r'"type":\s*"Precompiled"')


def load_tokenizer(path: Path, fix: str = "check tokenizer.path, or train a new one") -> Tokenizer:
    """Load a tokenizer from a tokenizer.json.

    Args:
        path: path of the file.
        fix: what to do if it cannot be used, for the error message.

    Raises:
        DataError: the file is missing or not a tokenizer.
    """
    try:
        text = read_text(path, FILE_BYTES)
    except (OSError, UntrustedFileError) as error:
        raise DataError(f"tokenizer {path} cannot be read: {error}; {fix}") from None
    return parse_tokenizer(text, str(path), fix)


def parse_tokenizer(text: str, where: str, fix: str) -> Tokenizer:
    """Make a tokenizer from the contents of a tokenizer.json.

    Raises:
        DataError: it is not a usable tokenizer.json; names `where`, and says what to do (`fix`).
    """
    try:
        # If the table of such a normalizer is damaged, the library panics and prints to stderr.
        if _PRECOMPILED.search(text):
            raise ValueError("its normalizer is Precompiled, which is not supported")
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(text))
        tokenizer.decode(tokenizer.encode("Once upon a time"))  # some defects show only here
    except BaseException as error:
        # The library raises a plain Exception for a bad file, and for some the exception of a Rust panic.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).partition("\n")[0]
        raise DataError(f"{where} is not a tokenizer.json that can be used ({reason}); {fix}") from None
    return tokenizer
