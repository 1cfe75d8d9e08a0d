"""Interleaved rounds.

A round times every step once, and each round begins with a different step, so that temporary slowdowns of the machine
and caches filled by the previous step affect all of them alike. On a GPU, times are taken between two events, the L2
cache is overwritten before each step, and the host waits only at the end of a round.
"""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import quantiles
from typing import NamedTuple

import torch

from benchmarks.operations.case import Step

WARM_UP_ROUNDS = 3
FLUSH_BYTES = 2**30
"""Bytes written before each step: many times any L2 cache, and long enough (0.2 ms on an H200) that the host has
launched a short operation before the device gets to it."""


class Spread(NamedTuple):
    """Seconds, and how many rounds they come from."""

    median: float
    first_quartile: float
    third_quartile: float
    rounds: int


def spread(seconds: list[float]) -> Spread:
    """Median and quartiles of the rounds."""
    first, middle, third = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Spread(middle, first, third, len(seconds))


def interleaved(
    steps: Mapping[str, Step], rounds: int, device: torch.device, warm_up: int = WARM_UP_ROUNDS
) -> dict[str, Spread]:
    """Time every step once per round.

    Args:
        steps: what to time, by name.
        rounds: timed rounds, at least one.
        device: where the steps run.
        warm_up: untimed rounds before them.
    """
    clock = _rounds_on_cuda if device.type == "cuda" else _rounds_on_cpu
    samples: dict[str, list[float]] = {name: [] for name in steps}
    with _no_garbage_collection():
        for number, one_round in enumerate(clock(steps, warm_up + rounds, device)):
            if number >= warm_up:
                for name, seconds in one_round.items():
                    samples[name].append(seconds)
    return {name: spread(values) for name, values in samples.items()}


def _order(steps: Mapping[str, Step], number: int) -> list[tuple[str, Step]]:
    """Round `number` begins with step `number`."""
    items = list(steps.items())
    first = number % len(items) if items else 0
    return items[first:] + items[:first]


def _rounds_on_cpu(steps: Mapping[str, Step], rounds: int, _device: torch.device) -> Iterator[dict[str, float]]:
    for number in range(rounds):
        seconds = {}
        for name, step in _order(steps, number):
            prepared = step.prepare()
            started = time.perf_counter()
            result = step.run(prepared)
            seconds[name] = time.perf_counter() - started
            del prepared, result
        yield seconds


def _rounds_on_cuda(steps: Mapping[str, Step], rounds: int, device: torch.device) -> Iterator[dict[str, float]]:
    flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    for number in range(rounds):
        events = {}
        for name, step in _order(steps, number):
            prepared = step.prepare()
            flushed.zero_()
            events[name] = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[name][0].record()
            result = step.run(prepared)
            events[name][1].record()
            # Free these before the next step begins, so that all find the same memory.
            del prepared, result
        torch.cuda.synchronize(device)
        yield {name: start.elapsed_time(end) / 1000 for name, (start, end) in events.items()}


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """Peak memory of a step beyond what was held before it; None if the device does not count it."""
    if device.type != "cuda":
        return None
    prepared = step.prepare()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step.run(prepared)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turn off garbage collection, whose time would count for the step that happens to trigger it."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
