"""What stories are like: how varied, how long, how well spelled, and how they end."""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from storyteller_ds.data.stories import Stories
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.evaluation.libraries import misspelt, self_bleu
from storyteller_ds.evaluation.told_stories import Told
from storyteller_ds.evaluation.words import (
    distinct,
    ends_in_a_sentence,
    keeps_names,
    names_in,
    repeated_share,
    words_of,
)

COMMON_IN = 5
"""A word is common if it occurs in at least this many training stories …"""
LOOKED_AT = 10_000
"""… among the first this many."""


@dataclass(frozen=True)
class StoryFigures:
    """Metrics of several stories, not counting their openings, which were given. None: there is nothing to count."""

    stories: int
    empty: int
    """Stories without a word."""
    words: float | None
    """Mean length."""
    vocabulary: int
    """Different words in all stories together."""
    common_share: float | None
    """Words that are common in the training text (fraction of the words)."""
    misspelt_share: float | None
    """Words that are not in the dictionary, leaving out names (fraction of the words)."""
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    self_bleu: float | None
    repeated_4: float | None
    """4-grams that occurred earlier in the same story (fraction of its 4-grams, mean over stories)."""
    ended: float | None
    """Stories that ended before the length limit (fraction)."""
    ended_in_a_sentence: float | None
    """Likewise, and at the end of a sentence."""
    names_kept: float | None
    """Stories with no new name in the second half (fraction of those with a name there)."""


def figures_of(stories: Sequence[Told], common: AbstractSet[str] | None) -> StoryFigures:
    """Compute the metrics.

    Args:
        stories: the stories to measure.
        common: words that are common in the training text; None: unknown.
    """
    texts = [story.continuation for story in stories]
    words = [words_of(text) for text in texts]
    every = [word for each in words for word in each]
    repeated = [share for each in words if (share := repeated_share(each, 4)) is not None]
    kept = [kept for each in stories if (kept := keeps_names(each.prompt + each.continuation)) is not None]
    return StoryFigures(
        stories=len(stories),
        empty=sum(not each for each in words),
        words=_mean([float(len(each)) for each in words]),
        vocabulary=len(set(every)),
        common_share=None if common is None else _mean([word in common for word in every]),
        misspelt_share=_misspelt_share(stories, every),
        distinct_1=distinct(words, 1),
        distinct_2=distinct(words, 2),
        distinct_3=distinct(words, 3),
        self_bleu=self_bleu(texts),
        repeated_4=_mean(repeated),
        ended=_mean([story.ended for story in stories]),
        ended_in_a_sentence=_mean([story.ended and ends_in_a_sentence(story.continuation) for story in stories]),
        names_kept=_mean(kept),
    )


def common_words(stories: Stories, tokenizer: Tokenizer) -> frozenset[str]:
    """Words that occur in at least COMMON_IN of the first LOOKED_AT training stories.

    For a children's corpus, this is a children's word list. The published ones (Dale-Chall and the like) are not used:
    they have no inflected forms, and no package provides one without downloading it at run time.
    """
    count: Counter[str] = Counter()
    for number in range(1, 1 + min(len(stories), LOOKED_AT)):
        count.update(set(words_of(tokenizer.decode(stories.ids(number)))))
    return frozenset(word for word, times in count.items() if times >= COMMON_IN)


def _misspelt_share(stories: Sequence[Told], words: Sequence[str]) -> float | None:
    names = {name.casefold() for each in stories for name in names_in(each.prompt + each.continuation)}
    others = [word.removesuffix("'s") for word in words if word.removesuffix("'s") not in names]
    wrong = misspelt(set(others))
    return None if wrong is None else _mean([word in wrong for word in others])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
