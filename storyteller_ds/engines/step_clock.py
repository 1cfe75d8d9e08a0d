"""How long the parts of a step take, measured without waiting for a GPU."""

import time
from itertools import pairwise
from typing import Any

import torch


class StepClock:
    """Marks the end of each part of a step; on CUDA with events, which are read when the step is known to be done.

    On MPS nothing is measured: the host runs ahead of the device, and torch has no reliable events there.
    """

    def __init__(self, device: torch.device) -> None:
        self._kind = device.type
        self._marks = [("", self._now())]

    def ended(self, part: str) -> None:
        """Mark that this part lasted from the last mark until now; a part may occur several times."""
        self._marks.append((part, self._now()))

    def seconds(self) -> dict[str, float]:
        """Total time of each part [s]; only after the device has done the step."""
        parts: dict[str, float] = {}
        if self._kind == "mps":
            return parts
        if self._kind == "cuda":
            self._marks[-1][1].synchronize()
        for (_, before), (part, after) in pairwise(self._marks):
            took = before.elapsed_time(after) / 1000 if self._kind == "cuda" else after - before
            parts[part] = parts.get(part, 0.0) + took
        return parts

    def _now(self) -> Any:
        if self._kind != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
