"""What the extra `evaluate` adds: self-BLEU and spelling. Without it, a note says that these metrics are missing."""

import importlib.util
from collections.abc import Iterable, Sequence

_INSTALL = "pip install 'storyteller_ds[evaluate]'"
MOST_STORIES = 100
"""Stories used for self-BLEU, whose time grows with the square of their number."""


def what_is_missing() -> list[str]:
    """Notes about metrics that need a package that is not installed, one per line."""
    needed = {"sacrebleu": "self-BLEU", "spellchecker": "spelling"}
    missing = [figure for module, figure in needed.items() if not _is_installed(module)]
    return [f"no {' and no '.join(missing)} without {_INSTALL}"] if missing else []


def self_bleu(texts: Sequence[str]) -> float | None:
    """How similar stories are to each other: the mean BLEU of each against all others (Texygen, Zhu et al. 2018).

    0: no words in common; 100: all are the same. BLEU is sacrebleu's (Post 2018) sentence BLEU with the tokenizer 13a,
    which leaves out orders without an n-gram (effective order). Only the first MOST_STORIES texts are used.

    Returns:
        None if there are fewer than two texts with words, or sacrebleu is not installed.
    """
    texts = [text for text in texts if text.strip()][:MOST_STORIES]
    if len(texts) < 2 or not _is_installed("sacrebleu"):
        return None
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return sum(scores) / len(scores)


def misspelt(words: Iterable[str]) -> set[str] | None:
    """The words that are not in pyspellchecker's English list; None if it is not installed."""
    if not _is_installed("spellchecker"):
        return None
    from spellchecker import SpellChecker

    # The distance matters only for corrections, and nothing is corrected here.
    return set(SpellChecker(distance=1).unknown({word.removesuffix("'s") for word in words}))


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
