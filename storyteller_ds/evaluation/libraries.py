"""What the extra `evaluate` adds: self-BLEU and spelling. Without it these figures are missing, and that is said."""

import importlib.util
from collections.abc import Iterable, Sequence

_INSTALL = "pip install 'storyteller_ds[evaluate]'"
MOST_STORIES = 100
"""Of which self-BLEU is taken: its time grows with their square."""


def what_is_missing() -> list[str]:
    """Notes about figures that need a package, a line each."""
    needed = {"sacrebleu": "self-BLEU", "spellchecker": "spelling"}
    missing = [figure for module, figure in needed.items() if not _is_installed(module)]
    return [f"no {' and no '.join(missing)} without {_INSTALL}"] if missing else []


def self_bleu(texts: Sequence[str]) -> float | None:
    """How much a story is like the others: BLEU of each against all others, its mean (Texygen, Zhu et al. 2018).

    0: no words in common; 100: all are the same. BLEU is sacrebleu's (Post 2018) of a sentence, which leaves orders
    without an n-gram out (effective order) and has the tokenizer 13a. Of the first MOST_STORIES texts.

    Returns:
        None: there are fewer than two texts with words, or sacrebleu is not installed.
    """
    texts = [text for text in texts if text.strip()][:MOST_STORIES]
    if len(texts) < 2 or not _is_installed("sacrebleu"):
        return None
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return sum(scores) / len(scores)


def misspelt(words: Iterable[str]) -> set[str] | None:
    """Those of the words that pyspellchecker's English list does not have; None: it is not installed."""
    if not _is_installed("spellchecker"):
        return None
    from spellchecker import SpellChecker

    # Distance 1: nothing is corrected here, and the distance only counts for that.
    return set(SpellChecker(distance=1).unknown({word.removesuffix("'s") for word in words}))


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
