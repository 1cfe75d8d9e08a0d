"""Which stories are dropped because of their own text."""

import re
import unicodedata

from storyteller_ds.data.cleaning.language import is_in
from storyteller_ds.data.cleaning.policy import Policy

DROPPED = {
    "too_short": "shorter than the least length",
    "too_long": "longer than the greatest length, with no place to cut it",
    "no_words": "without any word",
    "unfinished": "cut off: ends with a letter, a digit, a comma or the like",
    "other_language": "in another language",
}
_OPEN_ENDS = ("Ps", "Pd", "Pc")
"""Categories of characters that no sentence ends with: opening brackets, dashes, connectors."""
_FOOTNOTES = re.compile(r"(?:\n\n(?:\[[^\]\n]{1,3}\]|\*+|\(\d+\))\s[^\n]*)+$")
_WORD = re.compile(r"\w")
_THE_END = re.compile(r"the end\s*$", re.IGNORECASE)


def reason_to_drop(text: str, policy: Policy) -> str | None:
    """A key of DROPPED, or None for a story that is kept.

    Args:
        text: the normalized story.
        policy: its lengths and its language are used.
    """
    if len(text) < policy.min_characters:
        return "too_short"
    if len(text) > policy.max_characters:
        return "too_long"
    if not _WORD.search(text):
        return "no_words"
    # A footnote need not end like a sentence; without it, the tale may.
    if not (_is_finished(text) or _is_finished(_FOOTNOTES.sub("", text))):
        return "unfinished"
    if policy.language != "any" and not is_in(text, policy.language):
        return "other_language"
    return None


def _is_finished(text: str) -> bool:
    last = text[-1]
    category = unicodedata.category(last)
    if category[0] in "LNM":
        return _THE_END.search(text) is not None
    return last not in ",;:&+" and category not in _OPEN_ENDS
