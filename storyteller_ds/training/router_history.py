"""What a single step does not show about the routers: experts that stay without tokens, and loads that shift."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from storyteller_ds.engines.base import RouterMetrics
from storyteller_ds.training.callbacks.callback import Record

IDLE_STEPS = 20
"""Number of consecutive logged steps without a token after which an expert is idle."""


class RouterHistory:
    """Looks at the routers of every logged step.

    Args:
        earlier: records of the run so far, with which a resumed run finds what an uninterrupted one would have found.
            They come from a file: missing loads, or loads of another shape, are ignored.
    """

    def __init__(self, earlier: Iterable[Record] = ()) -> None:
        self._earlier = [(record.get("step"), record.get("layer_expert_load")) for record in earlier]
        self._seen: deque[tuple[int, list[list[float]]]] = deque(maxlen=IDLE_STEPS)
        """Steps and their loads, the latest last."""

    def record(self, layers: Sequence[RouterMetrics], step: int) -> Record:
        """Fields of the record of the next logged step.

        Args:
            layers: metrics of their routers.
            step: its number; steps with this number or a later one that were seen before have been undone.

        Returns:
            layer_router_drift: per layer, half the sum over experts of the change of their loads since the previous
                logged step: the fraction of the routed tokens that went elsewhere, 0 to 1; router_drift, their mean.
                From the second logged step on.
            idle_experts: experts without a token in the last IDLE_STEPS logged steps, summed over layers. Only once
                there are that many steps.
        """
        now = [layer.expert_load for layer in layers]
        for earlier, loads in self._earlier:
            if isinstance(earlier, int) and _is_like(loads, now):
                self._seen.append((earlier, loads))
        self._earlier = []
        while self._seen and self._seen[-1][0] >= step:
            self._seen.pop()
        record: dict[str, object] = {}
        if self._seen:
            drifts = [_distance(*loads) for loads in zip(self._seen[-1][1], now, strict=True)]
            record = {"router_drift": sum(drifts) / len(drifts), "layer_router_drift": drifts}
        self._seen.append((step, now))
        if len(self._seen) == IDLE_STEPS:
            layers_seen = zip(*(loads for _, loads in self._seen), strict=True)
            idle = [sum(not any(loads) for loads in zip(*layer, strict=True)) for layer in layers_seen]
            record |= {"idle_experts": sum(idle), "layer_idle_experts": idle}
        return record


def _is_like(loads: Any, now: list[list[float]]) -> TypeGuard[list[list[float]]]:
    """Whether these are loads of the same number of layers and experts."""
    return (
        isinstance(loads, list)
        and len(loads) == len(now)
        and all(isinstance(layer, list) and len(layer) == len(now[0]) for layer in loads)
        and all(isinstance(load, float | int) for layer in loads for load in layer)
    )


def _distance(before: Sequence[float], now: Sequence[float]) -> float:
    """Total variation distance of two distributions."""
    return sum(abs(a - b) for a, b in zip(before, now, strict=True)) / 2
