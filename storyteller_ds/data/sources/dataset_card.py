"""The card of a dataset in a local folder, which can name its data files."""

import re
from pathlib import Path
from typing import Any

from storyteller_ds.config.files import parse_yaml
from storyteller_ds.data.sources.datasets_library import OTHER_SOURCES
from storyteller_ds.errors import ConfigError, DataError
from storyteller_ds.untrusted import UntrustedFileError, inside, read_text

CARD_BYTES = 1 << 20
CARDS = ("README.md", ".huggingface.yaml")
"""Where the library looks for the names of data files."""
_FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---", re.DOTALL)


def names_files(folder: Path) -> bool:
    """Whether a card says which files are the data; False if a card cannot be read."""
    try:
        return any(_configs(card) for card in _cards(folder))
    except (UntrustedFileError, ConfigError, OSError):
        return False


def check_cards(folder: Path, dataset: str) -> None:
    """Refuse addresses in a folder's card before the library looks there.

    Args:
        folder: the dataset.
        dataset: its name as it was given.

    Raises:
        DataError: a card names a file that is not in the folder.
        UntrustedFileError, ConfigError, OSError: a card cannot be read.
    """
    todo = [_configs(card) for card in _cards(folder)]
    while todo:
        value = todo.pop()
        if isinstance(value, str) and (":" in value or value.startswith(("/", "~")) or ".." in value.split("/")):
            raise DataError(f"{dataset} names the file {value}, which is not one of its own; {OTHER_SOURCES}")
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _cards(folder: Path) -> list[Path]:
    return [inside(folder, name) for name in CARDS if (folder / name).exists()]


def _configs(card: Path) -> Any:
    text = read_text(card, CARD_BYTES)
    if card.suffix == ".md":
        matter = _FRONT_MATTER.match(text)
        text = matter[1] if matter else ""
    found = parse_yaml(text, str(card))
    return found.get("configs") if isinstance(found, dict) else None
