"""How fast a device multiplies, copies and launches operators, for comparison with the speed of training."""

import time
from collections.abc import Callable

import torch
from storyteller_kernels import linear

_ROUNDS = 3
_SHAPES = {"cuda": (8192, 4096)}
_SHAPE = 2048, 512
"""Rows, and width of a square weight. On a CPU a product takes a few milliseconds."""
_COPIED = {"cuda": 2**30}
_COPY = 2**27
"""Bytes; more than fits into a cache."""
_LAUNCHES = 2000


@torch.no_grad()
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured rate of a large matrix product with weights [FLOP/s].

    A GPU's data sheet promises more, but no product of finite size reaches it.

    Args:
        device: device to measure.
        dtype: dtype of both factors.
    """
    rows, width = _SHAPES.get(device.type, _SHAPE)
    # Not random, so the run's random streams are untouched; not constant, which takes less power and so less time.
    x, weight = (
        torch.linspace(-1, 1, count * width, device=device).sin().view(count, width).to(dtype)
        for count in (rows, width)
    )
    return 2 * rows * width * width / _fastest(lambda: linear(x, weight), device)


def copy_rate(device: torch.device) -> float:
    """Measured rate of a large copy, counting bytes read and bytes written [byte/s]."""
    source = torch.zeros(_COPIED.get(device.type, _COPY), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)


def launch_time(device: torch.device) -> float:
    """Time that the host needs to launch an operator that does almost nothing [s]."""
    one = torch.zeros(1, device=device)

    def launch_many() -> None:
        for _ in range(_LAUNCHES):
            one.add_(1)

    return _fastest(launch_many, device) / _LAUNCHES


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """The shortest time of several rounds after a warm-up round [s]."""
    seconds = []
    for _ in range(1 + _ROUNDS):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
