"""Headings of tales and chapters in books in plain text and Markdown."""

import re

LONGEST = 100
"""A longer line is not a heading (characters)."""
_MARKDOWN = re.compile(r"#{1,6}\s+\S")
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|last"
_NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_CHAPTER = re.compile(
    rf"(?:#+\s+)?(?:(?:chapter|part|book|section|canto)\s+(?:\d+|[ivxlc]+|the\s+(?:{_ORDINALS})|{_ORDINALS}|{_NUMBERS})\b"
    rf"|(?:the\s+)?(?:{_ORDINALS})\s+(?:story|part|chapter|book|tale|night|day|adventure|voyage)\b"
    r"|\d{1,3}\.?(?:\s|$)|[ivxlc]+\.?$|[ivxlc]+\.\s)",
    re.IGNORECASE,
)


def is_heading(block: str) -> bool:
    """Whether a block is a heading of a tale or chapter: one line in capitals, in Markdown, or worded like one."""
    if "\n" in block or len(block) > LONGEST or block[-1] in ",;:-":
        return False
    if _MARKDOWN.match(block):
        return True
    letters = [each for each in block if each.isalpha()]
    if len(letters) >= 3 and all(each.isupper() for each in letters):
        return True
    # "I saw" and "10 men" may begin a sentence, which ends with a period or continues on the next line.
    return _CHAPTER.match(block) is not None and len(block.split()) <= 8 and not re.search(r"[a-z][.!?]$", block)


def is_chapter(heading: str) -> bool:
    """Whether a heading is one of a series within a tale, such as CHAPTER II and SECOND STORY."""
    return _CHAPTER.match(heading) is not None
