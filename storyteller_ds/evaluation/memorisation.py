"""Whether stories are copied from the training text; held-out stories, examined the same way, are the control."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storyteller_ds.data.corpus import Corpus
from storyteller_ds.evaluation.overlap import TrainingText
from storyteller_ds.evaluation.text import EvaluatedText, Log
from storyteller_ds.evaluation.told_stories import Told
from storyteller_ds.evaluation.words import words_of
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile

WINDOW = 13
"""This many words in a row can hardly match by chance (Brown et al. 2020, 2005.14165, app. C)."""
NEAR_COPY = 0.5
"""A story is a near-copy if at least this fraction of its windows occurs in the training text."""


@dataclass(frozen=True)
class Copied:
    """What several stories have in common with the training text."""

    longest_words: list[int]
    """For each story, the number of words in the longest passage that also occurs in the training text."""
    share: list[float | None]
    """For each story, the fraction of its windows that occurs in the training text; None if it is too short for one."""
    near_copies: float | None
    """Near-copies (fraction of the stories with at least one window)."""
    longest: str
    """The longest of all these passages."""

    @property
    def median_words(self) -> float | None:
        """The median of longest_words."""
        return float(np.median(self.longest_words)) if self.longest_words else None


@dataclass(frozen=True)
class Memorisation:
    """Copying in a model's stories and, as a control, in the held-out ones with the same openings."""

    window_tokens: int
    """The length of a window of WINDOW words (tokens)."""
    of_model: Copied
    held_out: Copied


def memorisation(
    corpus: Corpus, text: EvaluatedText, vocab_size: int, told: Sequence[Told], held_out: Sequence[Told], log: Log
) -> Memorisation:
    """Look for passages of stories, without their openings, in what the model was trained on.

    Copying is measured as in McCoy et al. (2111.09509), with held-out text written by people as the baseline.

    Args:
        corpus: what the model was trained on.
        text: held-out stories in the model's tokens.
        vocab_size: the model's vocabulary size.
        told: the model's stories.
        held_out: the control.
        log: receives a line from time to time.
    """
    tokenizer = corpus.tokenizer
    training = TrainingText(corpus.train, vocab_size)
    stories = [tokenizer.encode(story.continuation) for story in (*told, *held_out)]
    window = _tokens_of_a_window(text)
    doing = ""

    def note(step: str) -> None:
        nonlocal doing
        doing = step

    with meanwhile(lambda: log(f"looking for copied passages: {doing}"), LINE_EVERY_S):
        passages = training.longest(stories, note)
        has = training.has(stories, window)
    copied = [
        _copied(
            [
                tokenizer.decode(ids[passage.start : passage.start + passage.length])
                for ids, passage in zip(stories[part], passages[part], strict=True)
            ],
            [float(each.mean()) if len(each) else None for each in has[part]],
        )
        for part in (slice(len(told)), slice(len(told), None))
    ]
    return Memorisation(window, *copied)


def _copied(passages: Sequence[str], share: list[float | None]) -> Copied:
    words = [len(words_of(passage)) for passage in passages]
    known = [each >= NEAR_COPY for each in share if each is not None]
    longest = passages[int(np.argmax(words))].strip() if passages else ""
    return Copied(words, share, sum(known) / len(known) if known else None, longest)


def _tokens_of_a_window(text: EvaluatedText) -> int:
    """How many tokens WINDOW words of held-out stories take, including what is between the words."""
    stories, tokens, words = text.stories, 0, 0
    for number in range(1, 1 + min(len(stories), 200)):
        ids = stories.ids(number)
        tokens += len(ids)
        words += len(words_of(text.tokenizer.decode(ids)))
    return max(1, round(WINDOW * tokens / max(1, words)))
