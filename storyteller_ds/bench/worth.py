"""Whether a mixture is worth it: its bits per byte compared with those of its dense twins, seed by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from storyteller_ds.bench.quality import Outcome
from storyteller_ds.bench.twins import MIXTURE, SAME_COMPUTE, SAME_PARAMETERS

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided 95 %, for 1 to 9 degrees of freedom; beyond 9, the last value is slightly too large."""
_CALLED = {SAME_COMPUTE: "a dense model with as much work per token", SAME_PARAMETERS: "one with as many parameters"}


class Difference(NamedTuple):
    """Bits per byte of the mixture minus those of another model, as a fraction of the other's."""

    part: float
    half_width: float | None
    """Half-width of the 95 % interval over seeds; None: there was only one seed."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.half_width is not None and abs(self.part) > self.half_width

    def __str__(self) -> str:
        more = "more" if self.part > 0 else "fewer"
        around = "" if self.half_width is None else f" (± {self.half_width:.1%} over seeds)"
        return f"{abs(self.part):.1%}{around} {more} bits per byte"


def difference(mixture: Outcome, other: Outcome) -> Difference:
    """The difference, paired by seed: runs with the same seed see the same batches."""
    pairs = zip(mixture.best, other.best, strict=True)
    parts = [ours.bpb / theirs.bpb - 1 for ours, theirs in pairs]
    if len(parts) < 2:
        return Difference(parts[0], None)
    t = _T[min(len(parts) - 2, len(_T) - 1)]
    return Difference(statistics.mean(parts), t * statistics.stdev(parts) / math.sqrt(len(parts)))


def verdict(found: Mapping[str, Outcome], budget: str) -> str:
    """The verdict in one sentence.

    Args:
        found: the runs of each recipe.
        budget: what each run got, such as `5 minutes`.
    """
    against = {name: difference(found[MIXTURE], found[name]) for name in _CALLED}
    told = " and ".join(f"{each} than {_CALLED[name]}" for name, each in against.items())
    return f"After {budget} on this machine the mixture has {told}: {_judgement([*against.values()])}."


def _judgement(differences: Sequence[Difference]) -> str:
    if any(each.half_width is None for each in differences):
        return "one seed does not say how much of that is chance"
    if all(each.is_clear and each.part < 0 for each in differences):
        return "it is worth it here"
    if any(each.is_clear and each.part > 0 for each in differences):
        return "it is not worth it here"
    return "the seeds do not tell them apart"
