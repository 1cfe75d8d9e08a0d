"""Stories in Markdown, read back by a Markdown library."""

import random
import re
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from storyteller_ds.generation.markdown import as_quote

MARKDOWN = MarkdownIt("commonmark").enable(["strikethrough", "table"])
TEXT = {"text", "text_special"}


class Rendered(NamedTuple):
    """What a reader sees of a quote."""

    paragraphs: list[str]
    bold: str


def render(markdown: str) -> Rendered:
    """Render `markdown`, which must be a single quote of plain text, some of it bold."""
    blocks = MARKDOWN.parse(markdown)
    kinds = [block.type for block in blocks]
    assert (kinds[0], kinds[-1]) == ("blockquote_open", "blockquote_close"), kinds
    assert set(kinds[1:-1]) <= {"paragraph_open", "inline", "paragraph_close"}, kinds
    bold = ""
    for inline in (block.children or [] for block in blocks if block.type == "inline"):
        assert {child.type for child in inline} <= TEXT | {"strong_open", "strong_close"}, inline
        within = False
        for child in inline:
            within = child.type == "strong_open" or (within and child.type != "strong_close")
            bold += child.content if within else ""
    return Rendered([text_of(block) for block in blocks if block.type == "inline"], bold)


def text_of(block: Token) -> str:
    return "".join(child.content for child in block.children or [])


def lines(text: str) -> list[str]:
    """The visible lines: those that are not blank, stripped, with single spaces."""
    return [single_blanks(line.strip()) for line in text.split("\n") if line.strip()]


def single_blanks(text: str) -> str:
    """Collapse whitespace, as a browser does."""
    return re.sub(r"\s+", " ", text)


def test_the_prompt_is_bold_and_the_paragraphs_are_paragraphs():
    quote = as_quote("Once upon a time", " there was a fox.\nIt was red.\n\nThe end.")
    assert render(quote) == (
        ["Once upon a time there was a fox.", "It was red.", "The end."],
        "Once upon a time",
    )
    assert quote == "> **Once upon a time** there was a fox.\n>\n> It was red.\n>\n> The end.", "easy to read as it is"


@pytest.mark.parametrize(
    ("prompt", "continuation"),
    [
        ("One day,", "right"),
        ("One day,", " right"),
        ("One day, ", "right"),
        ("It said: “", "Hello”"),
        ("*", "*"),
        ("**a**", "b**c"),
        ("# one", "\n# two\n## three"),
        ("> one", "\n> two\n- three\n+ four\n1. five\n22) six\n===\n---\n***"),
        ("<b>", "<script>alert(1)</script> <!-- x --> &amp; &lt;"),
        ("`a`", "```\ncode\n```"),
        ("[a](b)", "![c](d) [e]: f <http://g>"),
        ("a_b_", "_c_ ~~d~~ $e$ | f |\n|---|\n| g |"),
        ("a\\", "\\*b\\"),
        ("", "no prompt"),
        ("", "# no prompt"),
        ("no story", ""),
        ("two\nlines", " here\nand there"),
        ("a line\n", "and the next"),
        ("  blanks ", "  everywhere  \n    four of them\n\tor a tab"),
        ("日本語。", "日本語"),
    ],
)
def test_what_looks_like_markdown_is_text(prompt, continuation):
    found = render(as_quote(prompt, continuation))
    assert [single_blanks(line) for line in found.paragraphs] == lines(prompt + continuation)
    assert found.bold == "".join(lines(prompt))


@pytest.mark.parametrize("seed", range(300))
def test_random_texts(seed):
    chance = random.Random(seed)
    letters = ["a", "é", "1", " ", "\n", *"\\`*_[]<>&~$#-+=.!()|\"'{}:;/@^%,?", "&#35;", "**", "1. "]

    def text() -> str:
        return "".join(chance.choices(letters, k=chance.randint(0, 25)))

    prompt, continuation = text(), text()
    found = render(as_quote(prompt, continuation)) if (prompt + continuation).strip() else Rendered([], "")
    assert [single_blanks(line) for line in found.paragraphs] == lines(prompt + continuation)
    assert single_blanks(found.bold) == "".join(lines(prompt))


def test_what_a_terminal_would_obey_is_spelt_out():
    assert as_quote("Once", " \x1b[2J\r") == "> **Once** \\\\x1b\\[2J\\\\r"
