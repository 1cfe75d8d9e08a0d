"""Repairs the characters of a story: mojibake, Unicode normalization, control characters, white space, punctuation."""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import ftfy

from storyteller_ds.data.cleaning.policy import Punctuation
from storyteller_ds.data.sources.story_ends import MARKER

# Everything beyond repairing the encoding is done here instead of by ftfy, so that it can be counted separately.
_ENCODING = ftfy.TextFixerConfig(
    unescape_html="auto",
    remove_terminal_escapes=True,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)
_MAY_BE_MOJIBAKE = re.compile("[^\x00-\x7f]{2}|[\x80-\x9f&\x1b]|[\xc0-\xff] ")
"""A character that was decoded in the wrong encoding has become several, unless one of them was a space."""
_CUT_QUOTE = "â€"
"""What is left of a closing quotation mark whose last byte, 9D, is not in Windows-1252; ftfy cannot recognize it."""
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
"""Including zero-width marks and those that change writing direction. Joiners stay: scripts and emoji need them."""
_SPACES = re.compile("[\t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_BLANK_LINES = re.compile(r"\n{3,}")
_TRAILING = re.compile(r" +(?=\n)")
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–−", "-"),
        **dict.fromkeys("—―", "--"),
        "…": "...",
    }
)
_APART = f"{MARKER[:2]} {MARKER[2:-2]} {MARKER[-2:]}"


class Normalized(NamedTuple):
    """A story, and what was repaired in it."""

    text: str
    repairs: tuple[str, ...]
    """Names from REPAIRS."""


REPAIRS = {
    "mojibake": "text that was decoded as another encoding than its own, HTML entities, terminal escapes (ftfy)",
    "control_characters": "control characters and marks without width removed",
    "unicode": "characters composed (Unicode NFC)",
    "punctuation": "quotes, dashes and ellipses made those of a keyboard",
    "white_space": "spaces of other kinds, at the ends of lines, and more than one blank line",
    "marker": f"{MARKER} within a story, which is text there, spelled with spaces",
}


def normalize(text: str, punctuation: Punctuation) -> Normalized:
    """Repair a story; a repaired story stays as it is.

    Args:
        text: the story, with any line ends.
        punctuation: `plain` also replaces curly quotes, dashes and ellipses.
    """
    if _is_plain(text):
        return Normalized(text, ())
    steps: dict[str, Callable[[str], str]] = {
        "mojibake": _decoded,
        "control_characters": lambda each: _CONTROLS.sub("", _LINE_ENDS.sub("\n", each)),
        "unicode": lambda each: each if each.isascii() else unicodedata.normalize("NFC", each),
        "punctuation": lambda each: each.translate(_PLAIN) if punctuation == "plain" and not each.isascii() else each,
        "white_space": _tidy,
        "marker": lambda each: each.replace(MARKER, _APART),
    }
    repairs = []
    for name, step in steps.items():
        before, text = text, step(text)
        if text != before:
            repairs.append(name)
    return Normalized(text, tuple(repairs))


def _is_plain(text: str) -> bool:
    """Whether nothing can be wrong, which is quick to see for most stories."""
    return (
        text.isascii()
        and text.replace("\n", "").isprintable()
        and not any(each in text for each in ("&", " \n", "\n\n\n", MARKER))
        and text == text.strip()
    )


def _decoded(text: str) -> str:
    if not _MAY_BE_MOJIBAKE.search(text):
        return text
    fixed: str = ftfy.fix_text(text, _ENCODING)
    return fixed.replace(_CUT_QUOTE, "”")


def _tidy(text: str) -> str:
    text = _SPACES.sub(" ", text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()
