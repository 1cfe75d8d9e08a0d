"""Wrapping a text that arrives in pieces, compared with textwrap on the whole text."""

import random
import textwrap

import pytest
from rich.cells import cell_len

from storyteller_ds.cli.word_wrap import WordWrap

TEXT = "Once upon a time there was a little fox. It said: hello, my incomprehensibilities!\nThen it went home."


def wrapped(text: str, width: int, seed: int) -> str:
    chance, wrap, shown = random.Random(seed), WordWrap(width), ""
    while text:
        size = chance.randint(1, 7)
        shown += wrap.feed(text[:size])
        text = text[size:]
    return shown + wrap.rest()


@pytest.mark.parametrize("width", [10, 23, 40, 79, 200])
def test_lines_are_those_of_textwrap(width):
    lines = [textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in TEXT.split("\n")]
    for seed in range(20):
        assert wrapped(TEXT, width, seed).split("\n") == [part for line in lines for part in line]


def test_the_words_stay_what_they_are():
    for text in (TEXT, "  two  blanks \n\n and a\ttab ", "", "\n", "x"):
        assert wrapped(text, 12, 0).split() == text.split()
    assert wrapped("a  b\n\nc", 80, 0) == "a  b\n\nc"


def test_wide_letters_take_two_columns():
    shown = wrapped("日本 " * 20, 11, 0)
    assert max(cell_len(line.rstrip()) for line in shown.split("\n")) == 9


def test_a_word_is_shown_as_soon_as_it_is_whole():
    wrap = WordWrap(20)
    assert [wrap.feed(piece) for piece in ("On", "ce upon", " ", "a")] == ["", "Once", " upon", ""]
    assert wrap.rest() == " a"
