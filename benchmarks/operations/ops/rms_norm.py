"""RMSNorm, alone and with the preceding addition to the residual stream. Bound by the bytes that it moves."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from storyteller_kernels.rms_norm import add_rms_norm, reference, rms_norm
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.operations.case import DTYPE_NAMES, Candidate, Case, Direction, Implementation, Named, Size, leaf
from benchmarks.operations.goals import Goal
from benchmarks.operations.limits import COPY, copy
from benchmarks.operations.peers import liger
from benchmarks.operations.peers.torch_layers import compiled

EPS = 1e-5
NORMALIZE, ADD_NORMALIZE = "rms_norm", "add_rms_norm"


class Shape(NamedTuple):
    """T rows of width D."""

    T: int
    D: int
    dtype: torch.dtype


SHAPES: dict[Size, list[Shape]] = {
    # The shape in this suite's training step, and 64 MB, which no cache holds.
    "cpu": [Shape(2048, 256, torch.float32), Shape(16384, 1024, torch.float32)],
    # 320 MB per buffer.
    "gpu": [Shape(160 * 2**20 // D, D, torch.bfloat16) for D in (512, 1024, 2048, 4096)],
    "tiny": [Shape(7, 24, torch.float32)],
}
GOALS: dict[Size, list[Goal]] = {
    "gpu": [
        Goal("at least 0.9 of the copy bandwidth", "rms_norm", "forward", 0.9, limit=COPY),
        Goal("at least 0.8 of the copy bandwidth", "rms_norm", "backward", 0.8, limit=COPY),
        Goal("never slower than the best peer", "rms_norm", "forward", 1.0, peers=("",)),
        Goal("never slower than the best peer", "rms_norm", "backward", 1.0, peers=("",)),
    ]
}


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """Every shape, without and with the addition."""
    for shape in SHAPES[size]:
        for function in (NORMALIZE, ADD_NORMALIZE):
            yield _case(function, shape, size, device)


def bytes_moved(function: str, shape: Shape) -> dict[Direction, int]:
    """The minimum number of bytes to move, as counted in the operation's README."""
    buffer = shape.T * shape.D * shape.dtype.itemsize
    forward, backward = (2, 3) if function == NORMALIZE else (4, 4)
    return {"forward": forward * buffer, "backward": backward * buffer}


def _case(function: str, shape: Shape, size: Size, device: torch.device) -> Case:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*dims: int) -> Tensor:
        return torch.randn(dims, generator=generator, device=device).to(shape.dtype)

    names = ("x",) if function == NORMALIZE else ("x", "residual")
    inputs = {name: normal(shape.T, shape.D) for name in names} | {"weight": normal(shape.D)}

    def bound(name: str, role: str, build: Callable[[nn.Parameter], Callable[..., object]]) -> Implementation:
        return Implementation(name, role, lambda: _candidate(inputs, build))  # type: ignore[arg-type]

    pairs = {
        NORMALIZE: [
            bound("ours", "ours", lambda w: lambda x: rms_norm(x, w, EPS)),
            bound("reference", "baseline", lambda w: lambda x: reference.rms_norm(x, w, EPS)),
            bound("torch F.rms_norm", "peer", lambda w: lambda x: F.rms_norm(x, (shape.D,), w, EPS)),
            bound("Liger", "peer", lambda w: liger.rms_norm(w, EPS)),
        ],
        ADD_NORMALIZE: [
            bound("ours", "ours", lambda w: lambda x, r: add_rms_norm(x, r, w, EPS)),
            bound("reference", "baseline", lambda w: lambda x, r: reference.add_rms_norm(x, r, w, EPS)),
            bound("torch F.rms_norm", "peer", lambda w: lambda x, r: _torch_add_rms_norm(x, r, w)),
            bound("Liger", "peer", lambda w: liger.add_rms_norm(w, EPS)),
        ],
    }
    implementations = pairs[function]
    if size != "tiny":
        plain = reference.rms_norm if function == NORMALIZE else reference.add_rms_norm
        implementations.append(bound("torch.compile of the reference", "peer", lambda w: _compiled(plain, w)))
    work = bytes_moved(function, shape)
    return Case(
        op="rms_norm",
        name=f"{function} T={shape.T} D={shape.D} {DTYPE_NAMES[shape.dtype]}",
        shape={"T": shape.T, "D": shape.D, "dtype": DTYPE_NAMES[shape.dtype]},
        directions=["forward", "backward"],
        reference=lambda: _exact(inputs),
        implementations=implementations,
        limits=[copy(shape.T * shape.D * shape.dtype.itemsize, shape.dtype, device)],
        work={direction: {COPY: float(moved)} for direction, moved in work.items()},
        dtype=shape.dtype,
        device=device,
        # The sum, the normalized values, the product with the gain; backward also the normalized values' gradient.
        roundings=(2, 3) if function == NORMALIZE else (3, 4),
        rounds=50 if device.type == "cuda" else 15,
    )


def _candidate(inputs: Named, build: Callable[[nn.Parameter], Callable[..., object]]) -> Candidate:
    weight = nn.Parameter(inputs["weight"].clone())
    moving = {name: leaf(tensor) for name, tensor in inputs.items() if name != "weight"}
    normalize = build(weight)

    def forward() -> Named:
        out = normalize(*moving.values())
        return dict(zip(("y", "sum"), out if isinstance(out, tuple) else (out,), strict=False))

    return Candidate(forward, {**moving, "weight": weight})


def _exact(inputs: Named) -> Candidate:
    """The reference: by definition, in fp64."""
    leaves = {name: leaf(tensor, torch.float64) for name, tensor in inputs.items()}

    def forward() -> Named:
        if "residual" not in leaves:
            return {"y": _definition(leaves["x"], leaves["weight"])}
        summed = leaves["x"] + leaves["residual"]
        return {"y": _definition(summed, leaves["weight"]), "sum": summed}

    return Candidate(forward, leaves)


def _definition(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight


def _torch_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    summed = x + residual
    return F.rms_norm(summed, (len(weight),), weight, EPS), summed


def _compiled(plain: Callable[..., object], weight: Tensor) -> Callable[..., object]:
    fast = compiled(plain)
    return lambda *tensors: fast(*tensors, weight, EPS)
