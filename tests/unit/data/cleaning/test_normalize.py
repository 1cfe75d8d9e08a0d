"""Every repair, applied once and twice, and text that must not change."""

import pytest

from storyteller_ds.data.cleaning.normalize import normalize
from tests.unit.data.cleaning.conftest import story


@pytest.mark.parametrize(
    ("before", "after", "repair"),
    [
        ("the old man said, â€œhelloâ€\x9d to rené.", "the old man said, “hello” to rené.", "mojibake"),
        ("he said, â€œgo!â€\nand â€œstopâ€, she said.", "he said, “go!”\nand “stop”, she said.", "mojibake"),
        ("daddyâ€™s tie", "daddy’s tie", "mojibake"),
        ("cafÃ© and crÃ¨me", "café and crème", "mojibake"),
        ("salt &amp; pepper", "salt & pepper", "mojibake"),
        ("a\x07bell\u200b and\ufeff marks", "abell and marks", "control_characters"),
        ("one\r\ntwo\rthree\x0cfour", "one\ntwo\nthree\nfour", "control_characters"),
        ("cafe\u0301", "café", "unicode"),
        ("a\xa0b\tc  \n\n\n\n d ", "a b c\n\n d", "white_space"),
        ("a <|endoftext|> b", "a <| endoftext |> b", "marker"),
    ],
)
def test_each_repair(before: str, after: str, repair: str) -> None:
    found = normalize(before, "keep")
    assert found.text == after
    assert repair in found.repairs
    assert normalize(after, "keep") == (after, ())


def test_what_is_right_stays() -> None:
    for text in ("“Wait—what?” she said…", "naïve café", "家族 👩‍👩‍👧", story(1), "a\n\n  verse,\n  indented."):
        assert normalize(text, "keep") == (text, ())


def test_punctuation_of_a_keyboard_where_that_is_wanted() -> None:
    assert normalize("“Wait—it’s…” – «no»", "plain").text == '"Wait--it\'s..." - "no"'
    assert normalize("“Wait—it’s…”", "keep").text == "“Wait—it’s…”"
