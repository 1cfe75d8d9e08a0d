"""How long the parts of a step take, without a wait for a GPU."""

import time
from itertools import pairwise
from typing import Any

import torch


class StepClock:
    """Marks the ends of the parts of a step; on CUDA with events, which are read when the step is known to be done.

    On MPS nothing is measured: the host is ahead of the device, and torch has no events there that can be trusted.
    """

    def __init__(self, device: torch.device) -> None:
        self._kind = device.type
        self._marks = [("", self._now())]

    def ended(self, part: str) -> None:
        """This part lasted from the last mark until now; a part may come again."""
        self._marks.append((part, self._now()))

    def seconds(self) -> dict[str, float]:
        """Of each part [s], over all of its times; only after the device has done the step."""
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
