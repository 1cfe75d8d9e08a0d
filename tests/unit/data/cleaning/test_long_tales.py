"""Parts are short enough, about equally long, end at a paragraph or a sentence, and lose no word."""

import random

import pytest

from storyteller_ds.data.cleaning.long_tales import cut
from tests.unit.data.cleaning.conftest import sentences, story


def test_a_short_tale_stays_whole() -> None:
    assert cut("A fox.\n\nThe end.", 100) == ["A fox.\n\nThe end."]


@pytest.mark.parametrize("joint", ["\n\n", " "])
@pytest.mark.parametrize("longest", [300, 1000, 2500])
def test_parts(joint: str, longest: int) -> None:
    rng = random.Random(longest)
    tale = joint.join(" ".join(sentences(rng, rng.randint(1, 3))) for _ in range(200))
    parts = cut(tale, longest)
    assert all(len(part) <= longest and part.endswith(".") for part in parts)
    assert " ".join(parts).split() == tale.split()
    assert min(map(len, parts)) > longest / 4


def test_chapters_first() -> None:
    chapters = [f"CHAPTER {number}\n\n{story(seed)}" for seed, number in enumerate(("I", "II", "III"))]
    assert cut("\n\n".join(chapters), max(map(len, chapters))) == chapters


def test_what_has_no_place_to_cut_stays_too_long() -> None:
    assert cut("a" * 500, 100) == ["a" * 500]


def test_a_line_of_many_megabytes() -> None:
    tale = " ".join([story(1, 400)] * 300)
    parts = cut(tale, 32_000)
    assert len(tale) > 6e6
    assert " ".join(parts) == tale
    assert max(map(len, parts)) <= 32_000
