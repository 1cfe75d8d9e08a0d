"""Words, names and endings in the text of a story, for English and languages with similar spelling rules."""

import re
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_BEFORE_A_SENTENCE = ".!?:…\"“”«»‘'([—–-*\n"
"""After one of these, a capital letter may just mark the start of a sentence."""
_ENDING = re.compile(r"[.!?…][\"”’'»)\]]*$")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; an apostrophe within a word is part of it."""
    return _WORD.findall(text.replace("’", "'").casefold())


def names_in(text: str) -> set[str]:
    """Capitalized words that do not begin a sentence or a speech, except for `I` and words all in capitals."""
    return {_without_s(word) for word, begins in _placed(text) if not begins and _is_capitalized(word)}


def keeps_names(story: str) -> bool | None:
    """Whether each name in the second half of a story (by words) occurs in the first; None if that half has no name.

    A character who comes out of nowhere late in a story is the most common way in which small models lose the thread.
    """
    places = [found.start() for found in _WORD.finditer(story)]
    if len(places) < 2:
        return None
    half = places[len(places) // 2]
    # Whether a word begins a sentence can only be told from what comes before it.
    later = {_without_s(word) for word, begins in _placed(story, half) if not begins and _is_capitalized(word)}
    if not later:
        return None
    return later <= {_without_s(word) for word, _ in _placed(story[:half])}


def ends_in_a_sentence(text: str) -> bool:
    """Whether a text ends as a sentence does, closing quotes and brackets aside."""
    return bool(_ENDING.search(text.rstrip()))


def repeated_share(items: Sequence[str], n: int) -> float | None:
    """The fraction of a text's n-grams that are repeats; None if it has none (seq-rep-n, Welleck et al. 2020)."""
    grams = list(ngrams(items, n))
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Distinct n-grams of all texts divided by all of their n-grams (distinct-n, Li et al. 2016, 1510.03055)."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def ngrams(items: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of a sequence, in order."""
    return zip(*(items[i:] for i in range(n)), strict=False)


def _placed(text: str, start: int = 0) -> Iterator[tuple[str, bool]]:
    """Each word from `start` on as written, and whether it may begin a sentence."""
    for found in _WORD.finditer(text, start):
        before = text[: found.start()].rstrip(" \t")[-1:]
        yield found[0], not before or before in _BEFORE_A_SENTENCE


def _is_capitalized(word: str) -> bool:
    return word[0].isupper() and not word.isupper() and not word.startswith(("I'", "I’"))


def _without_s(word: str) -> str:
    return re.sub(r"['’]s$", "", word)
