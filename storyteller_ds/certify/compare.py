"""How far a row's results are from its reference's."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from storyteller_ds.certify.results import Results, StepNumbers


@dataclass(frozen=True)
class Difference:
    """Largest relative differences; infinite where there is nothing to compare with, NaN where a number is NaN."""

    loss: float
    """Of any step."""
    grad_norm: float
    """Of any step."""
    router: float
    """Of the balance loss, the z-loss or the router's entropy of any step."""
    weights: float
    """Of any tensor after the last step."""
    logits: float
    by_weight: Mapping[str, float]
    """The difference of each tensor, in the model's order."""

    def largest(self) -> tuple[str, float]:
        """The quantity that differs most, and by how much."""
        numbers = {
            "loss": self.loss,
            "gradient norm": self.grad_norm,
            "router losses": self.router,
            "weights": self.weights,
            "logits": self.logits,
        }
        # NaN is larger than anything.
        return max(numbers.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])

    def first_weight_beyond(self, tolerance: float) -> str | None:
        """The first tensor in the model's order that differs by more."""
        return next((name for name, value in self.by_weight.items() if not value <= tolerance), None)

    def complaint(self, tolerance: float) -> str | None:
        """One line on what is beyond the tolerance, with the first tensor that differs; None if nothing is."""
        what, value = self.largest()
        if value <= tolerance:
            return None
        name = self.first_weight_beyond(tolerance)
        tensor = (
            f"first tensor that differs: {name} ({self.by_weight[name]:.1e})" if name else "every weight tensor agrees"
        )
        return f"largest difference {value:.1e} ({what}), allowed {tolerance:g}; {tensor}"


def compare(ours: Results, reference: Results) -> Difference:
    """The differences of `ours` from `reference`.

    Scalars: |a - b| / |b|. Tensors: relative_difference.
    """
    by_weight = {
        name: relative_difference(ours.weights[name], tensor) if name in ours.weights else math.inf
        for name, tensor in reference.weights.items()
    }
    by_weight |= {name: math.inf for name in ours.weights if name not in reference.weights}
    return Difference(
        loss=_steps_differ(ours.steps, reference.steps, "loss"),
        grad_norm=_steps_differ(ours.steps, reference.steps, "grad_norm"),
        router=_largest(
            _steps_differ(ours.steps, reference.steps, field) for field in ("balance_loss", "z_loss", "router_entropy")
        ),
        weights=_largest(by_weight.values()),
        logits=relative_difference(ours.logits_BSV, reference.logits_BSV),
        by_weight=by_weight,
    )


def relative_difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| with Frobenius norms, in fp64; 0 for two zero tensors, infinite for other shapes.

    Not entry by entry: AdamW divides a gradient by its own size, so an entry whose gradient is mere
    rounding moves by rounding's sign, whatever the topology (docs/decisions/0003).
    """
    if a.shape != b.shape:
        return math.inf
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300))


def _steps_differ(ours: list[StepNumbers], reference: list[StepNumbers], field: str) -> float:
    if len(ours) != len(reference):
        return math.inf
    pairs = [(getattr(a, field), getattr(b, field)) for a, b in zip(ours, reference, strict=True)]
    return _largest(abs(a - b) / max(abs(b), 1e-300) for a, b in pairs)


def _largest(values: Iterable[float]) -> float:
    """The largest; NaN if one is, which max() might overlook."""
    every = list(values)
    return math.nan if any(math.isnan(value) for value in every) else max(every, default=0.0)
