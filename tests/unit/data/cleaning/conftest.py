"""Stories that have nothing in common, and a fixture that cleans them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storyteller_ds.data.cleaning import pipeline
from storyteller_ds.data.cleaning.policy import Policy

_WORDS = [
    first + second
    for first in (
        "bra",
        "clo",
        "dri",
        "fen",
        "gla",
        "hum",
        "jor",
        "kel",
        "lum",
        "mar",
        "nov",
        "pel",
        "rus",
        "sil",
        "tor",
    )
    for second in (
        "bel",
        "cot",
        "dan",
        "fip",
        "gor",
        "hin",
        "jat",
        "kos",
        "lim",
        "mun",
        "nar",
        "pod",
        "ras",
        "sen",
        "tul",
    )
]


def sentences(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choices(_WORDS, k=rng.randint(5, 12))).capitalize() + "." for _ in range(count)]


def story(seed: int, count: int = 20) -> str:
    return " ".join(sentences(random.Random(seed), count))


Cleaner = Callable[..., dict[str, Any]]


@pytest.fixture
def cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cleaner:
    """Clean a file or folder into tmp_path / "out", without plots, and check that its card adds up."""
    monkeypatch.setattr(pipeline, "_save_plots", lambda *arguments: [])

    def run(source: Path, output: Path = tmp_path / "out", processes: int = 1, **settings: Any) -> dict[str, Any]:
        policy = Policy(**{"language": "any", **settings})
        card = pipeline.preprocess(source, output, policy, processes, lambda line: None)
        assert json.loads((output / "card.json").read_text(encoding="utf-8")) == card
        check_sums(card, output)
        return card

    return run


def check_sums(card: dict[str, Any], output: Path) -> None:
    """Check that everything read is either in the files or counted as dropped."""
    files = {name: stories_in(output / f"{name}.txt") for name in ("train", "validation", "test")}
    assert {name: len(stories) for name, stories in files.items() if stories} == {
        name: each["stories"] for name, each in card["kept"].items()
    }
    kept = [story for stories in files.values() for story in stories]
    dropped = card["dropped"].values()
    assert card["read"]["stories"] == len(kept) + sum(each["stories"] for each in dropped)
    characters = sum(map(len, kept)) + sum(each["characters"] for each in dropped)
    assert card["read"]["characters"] == characters + card["characters_by_repairs"]


def stories_in(path: Path) -> list[str]:
    """The stories of a file, read without any project code."""
    if not path.exists():
        return []
    return [each.strip("\n") for each in path.read_text(encoding="utf-8").split("<|endoftext|>") if each.strip()]
