"""From the tokenizer section of a run config to the tokenizer that it names."""

from collections.abc import Iterable
from pathlib import Path

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.tokenizers import gpt2, llama2c
from storyteller_ds.data.tokenizers.byte_level import train_byte_level
from storyteller_ds.data.tokenizers.characters import train_characters
from storyteller_ds.data.tokenizers.sentencepiece import train_sentencepiece
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.errors import DataError
from storyteller_ds.user_paths import expand_home

TRAINERS = {"bpe": train_byte_level, "char": train_characters, "sentencepiece": train_sentencepiece}
"""Kinds that are trained on the corpus; the others are read from files."""
_FILE = "tokenizer.json"


def train_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """Train a new tokenizer on a corpus; the same documents give the same tokenizer.

    Args:
        config: its kind is one of TRAINERS.
        documents: the corpus.

    Raises:
        DataError: vocab_size is too small for the kind, or a special token is an ordinary word.
    """
    special = list(dict.fromkeys([END_OF_TEXT, *config.special_tokens]))
    tokenizer = TRAINERS[config.kind](config.vocab_size, special, documents)
    if forged := list(filter(tokenizer.is_forged, special)):
        raise DataError(
            f"tokenizer.special_tokens: {', '.join(map(repr, forged))} would be made of ordinary text, too; use names "
            "that no story has, such as <|im_start|>"
        )
    return tokenizer


def given_tokenizer(config: TokenizerConfig, cache_dir: Path | None) -> Tokenizer | None:
    """The existing tokenizer that a run uses, after checking that the model has rows for it; None: it trains one.

    Args:
        config: names the tokenizer.
        cache_dir: data.cache_dir, where GPT-2's tokenizer is kept.

    Raises:
        DataError: it cannot be read, is larger than the config says, or does not have its special tokens.
    """
    if config.path is not None:
        name, tokenizer = f"the tokenizer {config.path}", open_tokenizer(expand_home(config.path))
    elif config.kind == "gpt2":
        name, tokenizer = "GPT-2's tokenizer", gpt2.from_hub(cache_dir)
    elif config.kind in TRAINERS:
        return None
    else:
        raise DataError(f"tokenizer.kind={config.kind} is read from a file; add tokenizer.path=PATH/TO/tokenizer.bin")
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{name} has {tokenizer.vocab_size} tokens, more than tokenizer.vocab_size={config.vocab_size}; raise "
            f"tokenizer.vocab_size to {tokenizer.vocab_size}"
        )
    if missing := [token for token in config.special_tokens if token not in tokenizer.special_tokens]:
        raise DataError(
            f"{name} has no special token {', '.join(missing)}, which tokenizer.special_tokens lists; train one with "
            "it, or leave it out"
        )
    if forged := list(filter(tokenizer.is_forged, [END_OF_TEXT, *config.special_tokens])):
        raise DataError(
            f"{name} makes {', '.join(forged)} of text that spells it, so that a story could end itself; add it as a "
            "special token that the model's vocabulary does not have"
        )
    return tokenizer


def open_tokenizer(path: Path, fix: str = "check tokenizer.path, or train a new one") -> Tokenizer:
    """Open a tokenizer of any kind.

    Args:
        path: a tokenizer.json, a tokenizer.bin of llama2.c, or a folder with a tokenizer.json (such as a run's) or with
            GPT-2's vocab.json and merges.txt.
        fix: what to do if it cannot be used, for the error message.

    Raises:
        DataError: there is no usable tokenizer at the path.
    """
    if path.is_dir():
        return load_tokenizer(path / _FILE, fix) if (path / _FILE).exists() else gpt2.read_folder(path, fix)
    if path.suffix.lower() == ".bin":
        return llama2c.read_tokenizer(path, fix)
    return load_tokenizer(path, fix)
