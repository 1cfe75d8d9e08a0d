"""A dense layer, forward and backward, at the widths of the whole training step."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from storyteller_kernels import linear
from torch import Tensor
from torch.nn import functional as F

from benchmarks.operations.case import DTYPE_NAMES, Candidate, Case, Implementation, Named, Size, leaf
from benchmarks.operations.goals import Goal
from benchmarks.operations.limits import matrix_products
from benchmarks.operations.ops import moe_layer


class Shape(NamedTuple):
    """R rows, D inputs, H outputs."""

    R: int
    D: int
    H: int


SHAPES: dict[Size, tuple[list[Shape], torch.dtype]] = {
    "cpu": ([Shape(2048, 256, 256), Shape(2048, 256, 1024), Shape(1999, 256, 1024)], torch.float32),
    "gpu": ([Shape(16384, 1024, 4096)], torch.bfloat16),
    "tiny": ([Shape(9, 16, 40)], torch.float32),
}
GOALS: dict[Size, list[Goal]] = {}
"""It has no goals of its own."""


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """The suite's cases."""
    shapes, dtype = SHAPES[size]
    for shape in shapes:
        yield case(shape, dtype, device, size)


def case(shape: Shape, dtype: torch.dtype, device: torch.device, size: Size) -> Case:
    """The layer with one shape."""
    R, D, H = shape
    generator = torch.Generator(device).manual_seed(0)
    inputs = {
        "x": torch.randn(R, D, generator=generator, device=device).to(dtype),
        "weight": (torch.randn(H, D, generator=generator, device=device) * D**-0.5).to(dtype),
    }

    def of(layer: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype | None = None) -> Candidate:
        leaves: Named = {name: leaf(tensor, dtype) for name, tensor in inputs.items()}
        return Candidate(lambda: {"y": layer(leaves["x"], leaves["weight"])}, leaves)

    rates = matrix_products(moe_layer.PRODUCTS[size], dtype, device)
    return Case(
        op="linear",
        name=f"R={R} D={D} H={H} {DTYPE_NAMES[dtype]}",
        shape={**shape._asdict(), "dtype": DTYPE_NAMES[dtype]},
        directions=["forward+backward"],
        reference=lambda: of(lambda x_RD, weight_HD: x_RD @ weight_HD.t(), torch.float64),
        implementations=[
            Implementation("ours", "ours", lambda: of(linear)),
            Implementation("torch F.linear", "peer", lambda: of(F.linear)),
        ],
        limits=rates,
        work={"forward+backward": {rate.name: 6.0 * R * D * H for rate in rates}},
        dtype=dtype,
        device=device,
        rounds=30,
        tokens=R,
    )
