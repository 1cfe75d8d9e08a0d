"""Which language a story is in, by py3langid: its model is part of the package, so nothing is downloaded."""

from functools import cache
from typing import Any

from storyteller_ds.errors import DataError

LOOKED_AT = 120
"""Characters of a story that are looked at; more make no difference (docs/cleaning.md)."""
_OF_ENGLISH_ALONE = frozenset(["the", "and", "she", "they", "there", "with", "were", "had", "upon", "who"])
"""Two of these at the beginning of a story leave no doubt: then the library is not asked, which takes longer than all
other steps together."""
_SEARCHED = 500
"""How far to search for these (characters)."""
MARGIN = 0.9
"""How certain it must be that a story is in a language other than the wanted one (probability)."""


def is_in(text: str, language: str) -> bool:
    """Whether a story may be in a language (ISO 639-1): short or mixed text is given the benefit of the doubt."""
    if language == "en" and len(_OF_ENGLISH_ALONE.intersection(text[:_SEARCHED].lower().split())) > 1:
        return True
    found, probability = _identifier().classify(text[:LOOKED_AT])
    return bool(found == language or probability < MARGIN)


def check_language(language: str) -> None:
    """Raises DataError if a language has no model."""
    # Loading the models takes a second, which the default avoids.
    if language not in ("any", "en") and language not in (known := sorted(set(_identifier().nb_classes))):
        raise DataError(f"--language {language} is not known; use any, or one of {', '.join(known)}")


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
