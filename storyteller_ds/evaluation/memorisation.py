"""Whether stories are copied from the training text; held-out stories, looked at in the same way, are the control."""

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
"""Words that can hardly be the same by chance (Brown et al. 2020, 2005.14165, app. C)."""
NEAR_COPY = 0.5
"""A story is a near-copy if the training text has this part of its windows."""


@dataclass(frozen=True)
class Copied:
    """Of several stories."""

    longest_words: list[int]
    """Of each story, words of the longest passage that the training text has, too."""
    share: list[float | None]
    """Of each story, the part of its windows that the training text has; None: it is shorter than one."""
    near_copies: float | None
    """Stories of which it has NEAR_COPY (fraction of those with a window)."""
    longest: str
    """The longest passage of all."""

    @property
    def median_words(self) -> float | None:
        """The median of longest_words."""
        return float(np.median(self.longest_words)) if self.longest_words else None


@dataclass(frozen=True)
class Memorisation:
    """Of a model's stories and, as a control, of the held-out ones with the same openings."""

    window_tokens: int
    """Tokens that WINDOW words are."""
    of_model: Copied
    held_out: Copied


def memorisation(
    corpus: Corpus, text: EvaluatedText, vocab_size: int, told: Sequence[Told], held_out: Sequence[Told], log: Log
) -> Memorisation:
    """Look for stories in what the model was trained on; continuations only, without their openings.

    The copying is that of McCoy et al. (2111.09509), measured against held-out text by people as they do.

    Args:
        corpus: what it was trained on.
        text: held-out stories in its tokens.
        vocab_size: of the model.
        told: its stories.
        held_out: the control.
        log: gets a line from time to time.
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
    """How many tokens WINDOW words are in held-out stories, with what stands between them."""
    stories, tokens, words = text.stories, 0, 0
    for number in range(1, 1 + min(len(stories), 200)):
        ids = stories.ids(number)
        tokens += len(ids)
        words += len(words_of(text.tokenizer.decode(ids)))
    return max(1, round(WINDOW * tokens / max(1, words)))
