"""Which implementation of the operations this process uses, chosen once.

`STORYTELLER_KERNELS` is `auto` (the default) or `reference`. Only the plain torch references exist so
far, so both mean the same; the choice is a function so that callers need not change when kernels come.
"""

import functools
import os
from typing import NamedTuple


class Backend(NamedTuple):
    """The chosen implementation and why it was chosen, for one line in the log."""

    name: str
    reason: str


@functools.cache
def backend() -> Backend:
    """The implementation in use, read from the environment at the first call.

    Raises:
        ValueError: STORYTELLER_KERNELS has a value that is not known.
    """
    wanted = os.environ.get("STORYTELLER_KERNELS", "auto")
    if wanted == "auto":
        return Backend("reference", "no compiled kernels in this version")
    if wanted == "reference":
        return Backend("reference", "STORYTELLER_KERNELS=reference")
    raise ValueError(f"STORYTELLER_KERNELS={wanted} is not known; use auto or reference")
