"""Where a stop string ends a streamed text, compared with a search of the whole text."""

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from storyteller_ds.generation.stop_strings import StopStrings

STOPS = [["ab"], ["aab", "ba"], ["abab", "b"], ["aaa"], ["bcd", "c"], ["cd", "bcd"], ["The end."], []]


def searched(text: str, stop: list[str]) -> tuple[str, bool]:
    """The text before the first stop string, searched letter by letter, and whether there is one."""
    for end in range(len(text) + 1):
        if found := [each for each in stop if text[:end].endswith(each)]:
            return text[: end - max(map(len, found))], True
    return text, False


def may_become_one(text: str, stop: list[str]) -> bool:
    return any(each.startswith(text) for each in stop)


class Read:
    """A text read in pieces, and the part of it that has been passed on."""

    def __init__(self, text: str, cuts: list[int], stop: list[str]) -> None:
        self.given = self.said = ""
        words = StopStrings(stop)
        for piece in words.before(self.pieces(text, cuts, stop)):
            assert piece
            self.said += piece
        self.found = words.found

    def pieces(self, text: str, cuts: list[int], stop: list[str]) -> Iterator[str]:
        for start, end in pairwise(cuts):
            self.given += text[start:end]
            yield text[start:end]
            # The next piece is requested: everything certain has been passed on.
            assert self.given.startswith(self.said)
            held = self.given[len(self.said) :]
            assert not held or may_become_one(held, stop)
            assert not any(may_become_one(self.given[i:], stop) for i in range(len(self.said)))


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_it_ends_before_the_first_and_holds_back_only_what_may_be_one(stop):
    chance, ends = random.Random(str(stop)), set()
    for _ in range(300):
        text = "".join(chance.choices("abcd" if len(stop) != 1 else "ab", k=chance.randint(0, 14)))
        if stop == ["The end."]:
            text = f"The en{text[:2]}The end{text[2:5]}The end." + text
        cuts = sorted({0, len(text), *(chance.randint(0, len(text)) for _ in range(chance.randint(0, 9)))})
        read = Read(text, cuts, stop)
        assert (read.said, read.found) == searched(text, stop)
        ends.add(read.found)
    assert ends == ({False} if not stop else {True} if stop == ["The end."] else {True, False})


def test_a_search_of_each_piece_would_miss_it():
    split = ["The ", "en", "d. And"]
    assert not any("The end." in piece for piece in split)
    assert list(StopStrings(["The end."]).before(iter(split))) == []
    assert "".join(StopStrings(["The end!"]).before(iter(split))) == "The end. And"


def test_nothing_more_is_asked_for_once_it_is_found():
    pieces = iter(["a", "stop", "b"])
    assert list(StopStrings(["stop"]).before(pieces)) == ["a"]
    assert next(pieces) == "b"
