"""Suggest the name that was probably meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The nearest of the valid names, or None if none is near."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` for the nearest of the valid names, or the list of them if none is near.

    Args:
        name: what was given.
        valid: what it could have been.
        prefix: put before the suggestion, for instance its section.
    """
    names = list(valid)
    if near := nearest(name, names):
        return f"; did you mean '{prefix}{near}'?"
    return f"; valid: {', '.join(prefix + each for each in sorted(names))}"
