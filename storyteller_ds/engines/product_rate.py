"""How fast a device multiplies: what the speed of training is compared with."""

import time

import torch
from storyteller_kernels import linear

_SHAPES = {"cuda": (8192, 4096)}
_SHAPE = 2048, 512
"""Rows and width of a square weight. On a CPU a product takes some milliseconds."""
_ROUNDS = 3


@torch.no_grad()
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured rate of a large matrix product with weights [FLOP/s], the fastest of a few.

    A GPU's data sheet promises more, which no product of finite size reaches.

    Args:
        device: whose.
        dtype: of both factors.
    """
    rows, width = _SHAPES.get(device.type, _SHAPE)
    # Not random: the streams of the run are not touched. Not constant, for that takes less power, and so less time.
    x, weight = (
        torch.linspace(-1, 1, count * width, device=device).sin().view(count, width).to(dtype)
        for count in (rows, width)
    )
    seconds = []
    for _ in range(1 + _ROUNDS):
        _wait(device)
        began = time.perf_counter()
        linear(x, weight)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * rows * width * width / min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
