"""How children's stories begin, which shows where a new one begins in text without any marker between them.

Some phrases open a story wherever they occur. Others, and a name that has not occurred yet, do so only after a few
paragraphs: "One day, a bird came" is just as often the second paragraph of a story. How well this works was measured
on 3,642 stories with known ends (docs/cleaning.md).
"""

import re

_ANYWHERE = re.compile(
    r"""["'“‘]?(?:
        once,?\ (?:upon\ a\ time|there\ (?:was|were|lived)|a\ (?!day|week|month|year))
      | (?:long,?\ )?long\ ago\b
      | a\ long\ (?:time|while)\ ago\b
      | there\ (?:once|was\ once|were\ once|lived)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_DAY = r"one\ (?:\w+\ )?(?:day|morning|evening|night|afternoon)s?,?"
_BEHIND_SOME = re.compile(
    rf"""(?:
        {_DAY}\ (?:in\ [^,.]*,\ )?(?:a|an|two|three|some|there|in\ a)\b
      | it\ (?:is|was)\ an?\ (?:\w+,?\ )+(?:day|morning|night|evening|afternoon)\b
      | there\ (?:was|were|is|are)\ (?:a|an|two|three|some)\b
      | an?\ (?:\w+\ ){1, 4}(?:was|were|is|lived|had|and\ (?:his|her))\b
      | the\ sun\ (?:was|is)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_NOBODY = r"(?!(?:After|And|As|At|But|He|I|In|It|On|She|So|That|The|Then|There|They|This|We|What|When|You)\b)"
_WHO = (
    rf"(?:[Oo]ne (?:\w+ )?(?:day|morning|evening|night|afternoon),? )?{_NOBODY}"
    r"([A-Z][a-z]+)(?:,? and (?:(?:his|her|their) \w+|([A-Z][a-z]+)))?,?"
)
_NEW_NAME = re.compile(
    rf"{_WHO} (?:is|are|was|were|liked?|likes|loved?|loves|had|has|have|lived?|lives|went|wanted|wants)\b"
)
_INTRODUCED = re.compile(
    rf"{_WHO} (?:(?:is|was) an? (?!bit|little bit)"
    r"|(?:are|were) (?:\w+ )?(?:friends|twins|brothers|sisters|siblings)\b(?! now)"
    r"|(?:are|were|was|is) (?:play|walk)ing\b|(?:likes?|liked|loves?|loved) to\b)"
)
_WORD = re.compile(r"[^\W\d_]+")
_FEW = 2
"""Number of paragraphs of a story after which a new name opens the next one; a phrase needs one more."""


def opens_story(paragraph: str) -> bool:
    """Whether a paragraph begins like the first one of a story, wherever it is."""
    return _ANYWHERE.match(paragraph) is not None


class Openings:
    """Finds the first paragraphs of stories, given all paragraphs in order."""

    def __init__(self) -> None:
        self._paragraphs = 0
        self._words: set[str] = set()

    def is_next(self, paragraph: str) -> bool:
        """Whether a story begins with the next paragraph."""
        opens = (
            opens_story(paragraph)
            or (self._paragraphs > _FEW and bool(_BEHIND_SOME.match(paragraph) or _INTRODUCED.match(paragraph)))
            or (self._paragraphs >= _FEW and self._has_new_name(paragraph))
        )
        if opens:
            self._paragraphs, self._words = 0, set()
        self._paragraphs += 1
        self._words.update(_WORD.findall(paragraph))
        return opens

    def _has_new_name(self, paragraph: str) -> bool:
        found = _NEW_NAME.match(paragraph)
        return found is not None and self._words.isdisjoint(name for name in found.groups() if name)
