"""Story boundaries: known ones are removed and found again, and every kind of text is told from the others."""

import itertools
import random
from pathlib import Path

import pytest

from storyteller_ds.data.cleaning.boundaries import find_boundary, paragraphs, stories_of
from storyteller_ds.data.cleaning.headings import is_chapter, is_heading
from storyteller_ds.data.sources.story_ends import MARKER
from tests.unit.data.cleaning.conftest import sentences, story

OPENING = "Once upon a time there was a fox. "


def tales(count: int, opening: str = OPENING) -> list[str]:
    """Stories of three paragraphs each."""
    rng = random.Random(7)
    return [
        "\n\n".join([opening + " ".join(sentences(rng, 4)), *(" ".join(sentences(rng, 5)) for _ in range(2))])
        for _ in range(count)
    ]


def found(text: str) -> tuple[str, list[str]]:
    blocks = paragraphs(text)
    boundary = find_boundary(blocks)
    return boundary, list(stories_of(blocks, boundary))


def test_openings() -> None:
    stories = tales(20)
    assert found("\n\n".join(stories)) == ("opening", stories)


def test_line_breaks_between_stories_and_blank_lines_within() -> None:
    stories = tales(20)
    assert found("\n".join(stories)) == ("line_break", stories)


def test_a_story_in_each_line() -> None:
    stories = [story(seed) for seed in range(20)]
    assert found("\n".join(stories)) == ("line", stories)


def test_long_paragraphs_are_stories() -> None:
    stories = [story(seed) for seed in range(20)]
    assert found("\n\n".join(stories)) == ("blank_line", stories)


def test_headings_and_chapters_within_a_tale() -> None:
    fox, mouse, owl = tales(3, opening="")
    text = [
        f"THE FOX\n\n{fox}",
        f"THE MOUSE\n\n1. HOW IT BEGAN\n\n{mouse}\n\n2. HOW IT ENDED\n\n{owl}",
        f"THE OWL\n\n{owl}",
    ]
    assert found("\n\n".join(text)) == ("heading", text)


def test_text_that_says_nothing_is_one_story() -> None:
    text = "\n\n".join(" ".join(sentences(random.Random(i), 3)) for i in range(50))
    assert found(text) == ("file", [text])


def test_nothing_is_lost_whatever_the_boundary() -> None:
    blocks = paragraphs("\n\n".join(["A TITLE", *tales(5), "one\ntwo\nthree", "CHAPTER II", *tales(2)]))
    words = " ".join(blocks).split()
    for boundary in ("blank_line", "line", "line_break", "heading", "opening", "file"):
        assert " ".join(stories_of(blocks, boundary)).split() == words


def test_real_stories_without_their_marks(shared_folder: Path) -> None:
    text = (shared_folder / "data" / "tinystories_train.txt").read_text(encoding="utf-8")
    stories = [[*filter(str.strip, each.split("\n"))] for each in text.split(MARKER) if each.strip()]
    apart = stories_of([block for each in stories for block in each], "opening")
    known, found = (
        set(itertools.accumulate(map(len, each))) for each in (stories, (story.split("\n\n") for story in apart))
    )
    assert len(known & found) > 0.98 * len(found)
    assert len(known & found) > 0.93 * len(known)


@pytest.mark.parametrize(
    "line", ["THE GOLDEN BIRD", "# Hans", "Chapter 1", "CHAPTER II.", "II.", 'THE BOY WHO CRIED "WOLF!"']
)
def test_headings(line: str) -> None:
    assert is_heading(line)


@pytest.mark.parametrize(
    "line", ["He ran.", "MISS BROWN,", "I saw a fox.", "* * *", "THE FOX\nran", "1 fox ran away and was gone."]
)
def test_no_headings(line: str) -> None:
    assert not is_heading(line)


def test_chapters() -> None:
    assert all(map(is_chapter, ["CHAPTER II", "SECOND STORY", "2. HOW IT ENDED", "# Part One", "IV."]))
    assert not any(map(is_chapter, ["THE GOLDEN BIRD", "IRON HANS", "# The second one"]))
