"""GPT-2's own tokenizer: byte-level BPE whose vocab.json and merges.txt are in a folder or on the Hugging Face hub."""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models, pre_tokenizers

from storyteller_ds.data.cache import cache_folder
from storyteller_ds.data.tokenizers.byte_level import byte_level
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import FILE_BYTES
from storyteller_ds.data.work_folder import put_in_place, work_folder
from storyteller_ds.errors import DataError
from storyteller_ds.hub_errors import hub_errors
from storyteller_ds.untrusted import UntrustedFileError, read_json, read_text

REPOSITORY, COMMIT = "openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
PROBE_TIMEOUT_SECONDS = 4.0
"""The hub must answer one small request within this time before anything is downloaded."""
_VERSION = "#version"
"""How the first line of merges.txt may begin; all other lines are merges, even those that begin with #."""


def read_folder(folder: Path, fix: str = "check tokenizer.path") -> Tokenizer:
    """Read the tokenizer in a folder.

    Args:
        folder: has one file whose name ends in vocab.json and one whose name ends in merges.txt.
        fix: what to do if it cannot be used, for the error message.

    Raises:
        DataError: a file is missing, cannot be read, or is malformed.
    """
    try:
        ids = _ids(_only(folder, VOCABULARY))
        merges = _merges(_only(folder, MERGES), ids)
    except UntrustedFileError as error:
        raise DataError(f"{error}; {fix}") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}; {fix}") from None
    inner = byte_level(models.BPE(ids, merges))
    inner.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return Tokenizer(inner)


def from_hub(cache_dir: Path | None) -> Tokenizer:
    """The tokenizer of REPOSITORY at COMMIT, downloaded into the cache folder once.

    Args:
        cache_dir: data.cache_dir.

    Raises:
        DataError: it is not there, and the hub cannot be reached (reported within 15 seconds); or it is damaged.
    """
    folder = cache_folder(cache_dir) / "hub" / REPOSITORY / COMMIT
    if not folder.exists():
        _download(folder)
    return read_folder(folder, "remove the folder, and it is downloaded again")


def _only(folder: Path, ending: str) -> Path:
    """The only file in the folder whose name ends in `ending`."""
    found = sorted(folder.glob(f"*{ending}"))
    if len(found) != 1:
        there = f"has {', '.join(path.name for path in found)}" if found else f"has no {ending}"
        raise UntrustedFileError(f"{folder}: {there}, and one {VOCABULARY} and one {MERGES} make GPT-2's tokenizer")
    return found[0]


def _ids(path: Path) -> dict[str, int]:
    """Token -> id."""
    ids: Any = read_json(path, FILE_BYTES)
    if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
        raise UntrustedFileError(f"{path}: not an object of tokens and their ids")
    if sorted(ids.values()) != list(range(len(ids))):
        raise UntrustedFileError(f"{path}: the ids are not 0 to {len(ids) - 1}, each once")
    if missing := {*pre_tokenizers.ByteLevel.alphabet(), END_OF_TEXT} - ids.keys():
        raise UntrustedFileError(f"{path}: {len(missing)} of the 256 bytes and {END_OF_TEXT} are missing")
    return ids


def _merges(path: Path, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens, in the order in which they are merged."""
    merges = []
    for number, line in enumerate(read_text(path, FILE_BYTES).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith(_VERSION)):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise UntrustedFileError(
                f"{path}: line {number}, {line!r:.60}, is not a merge of two tokens of the vocabulary"
            )
        merges.append((left, right))
    return merges


def _download(folder: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with _quiet():
            # So that a dead network is an error in seconds, not in minutes.
            api.model_info(REPOSITORY, revision=COMMIT, timeout=PROBE_TIMEOUT_SECONDS)
            with work_folder(folder) as work:
                for name in (VOCABULARY, MERGES):
                    api.hf_hub_download(REPOSITORY, name, revision=COMMIT, local_dir=work)
                if not folder.exists():  # another process may have been faster
                    put_in_place(work, folder)
    except hub_errors() as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"GPT-2's tokenizer could not be downloaded from {REPOSITORY} on the Hugging Face hub to {folder} "
            f"({reason:.200}); check the network, give tokenizer.path=FOLDER with its {VOCABULARY} and {MERGES}, or "
            "train one of the same size with tokenizer.kind=bpe"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the library's progress bars and warnings: what matters becomes a DataError."""
    library: Any = importlib.import_module("huggingface_hub.utils")  # mypy does not know its names
    logger = logging.getLogger("huggingface_hub")
    level, loud = logger.level, not library.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    if loud:
        library.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if loud:
            library.enable_progress_bars()
