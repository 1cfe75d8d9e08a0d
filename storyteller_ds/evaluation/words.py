"""Words, names and endings in the text of a story. English, and languages that are written alike."""

import re
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_BEFORE_A_SENTENCE = ".!?:…\"“”«»‘'([—–-*\n"
"""A capital behind one of these is that of a sentence, or may be."""
_ENDING = re.compile(r"[.!?…][\"”’'»)\]]*$")


def words_of(text: str) -> list[str]:
    """The words of a text in small letters; an apostrophe within one is a part of it."""
    return _WORD.findall(text.replace("’", "'").casefold())


def names_in(text: str) -> set[str]:
    """Words that have a capital without beginning a sentence or a speech, but for `I` and words all in capitals."""
    return {_without_s(word) for word, begins in _placed(text) if not begins and _is_capitalised(word)}


def keeps_names(story: str) -> bool | None:
    """Whether each name in the second half of a story (by its words) has occurred in the first; None: it has no name.

    A figure that comes out of nowhere late in a story is the commonest way in which small models lose the thread.
    """
    places = [found.start() for found in _WORD.finditer(story)]
    if len(places) < 2:
        return None
    half = places[len(places) // 2]
    # Where a word stands in a sentence can only be seen with what is before it.
    later = {_without_s(word) for word, begins in _placed(story, half) if not begins and _is_capitalised(word)}
    if not later:
        return None
    return later <= {_without_s(word) for word, _ in _placed(story[:half])}


def ends_in_a_sentence(text: str) -> bool:
    """Whether a text ends as a sentence does, closing quotes and brackets aside."""
    return bool(_ENDING.search(text.rstrip()))


def repeated_share(items: Sequence[str], n: int) -> float | None:
    """The part of the n-grams of a text that it has had before; None: it has none (seq-rep-n, Welleck et al. 2020)."""
    grams = list(ngrams(items, n))
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams of all texts over all of their n-grams (distinct-n, Li et al. 2016, 1510.03055)."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def ngrams(items: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of a sequence, in order."""
    return zip(*(items[i:] for i in range(n)), strict=False)


def _placed(text: str, start: int = 0) -> Iterator[tuple[str, bool]]:
    """Each word from `start` on as it is written, and whether it may begin a sentence."""
    for found in _WORD.finditer(text, start):
        before = text[: found.start()].rstrip(" \t")[-1:]
        yield found[0], not before or before in _BEFORE_A_SENTENCE


def _is_capitalised(word: str) -> bool:
    return word[0].isupper() and not word.isupper() and not word.startswith(("I'", "I’"))


def _without_s(word: str) -> str:
    return re.sub(r"['’]s$", "", word)
