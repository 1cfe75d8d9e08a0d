"""Suggest the name that was probably meant."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` for the nearest of the valid names, or the list of them if none is near.

    Args:
        name: what was given.
        valid: what it could have been.
        prefix: put before the suggestion, for instance its section.
    """
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{prefix}{near[0]}'?"
    return f"; valid: {', '.join(prefix + each for each in sorted(names))}"
