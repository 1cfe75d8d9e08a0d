"""The differences between two checkpoints, with one tensor of each in memory at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storyteller_ds.checkpoint.read import Checkpoint


@dataclass(frozen=True)
class TensorDifference:
    """How far a tensor of B is from the same tensor of A."""

    name: str
    """Canonical name of a weight; exp_avg/NAME and exp_avg_sq/NAME for its moments."""
    max_abs: float | None
    """Largest difference of any element; None if it is not finite or the shapes differ."""
    relative: float | None
    """max_abs divided by the largest magnitude in A; None if that is not finite."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    """In A and in B."""


@dataclass(frozen=True)
class Difference:
    """B compared with A."""

    steps: tuple[int, int]
    settings: Mapping[str, tuple[Any, Any]]
    """Run config fields that differ, with their values in A and in B; None if there is no such field."""
    topology: Mapping[str, tuple[Any, Any]]
    """Fields that differ between the topologies that wrote them."""
    same_corpus: bool
    """Whether both were trained on the same tokens."""
    tensors: list[TensorDifference]
    """Tensors that differ in any bit, in the order of A."""
    only_in_a: list[str]
    only_in_b: list[str]
    equal: int
    """How many tensors are the same bit for bit."""


def diff(a: Checkpoint, b: Checkpoint) -> Difference:
    """Compare settings, topology, weights and moments of two checkpoints; only weights if one has nothing else.

    Raises:
        CheckpointError: a file of either cannot be read.
    """
    tensors: list[TensorDifference] = []
    only_in_a: list[str] = []
    only_in_b: list[str] = []
    equal = 0
    for part in ("weights", "optimizer"):
        if part not in a.parts or part not in b.parts:
            continue
        files_a, files_b = (c.open_weights(finite=False) if part == "weights" else c.open_tensors(part) for c in (a, b))
        only_in_a += [name for name in files_a if name not in files_b]
        only_in_b += [name for name in files_b if name not in files_a]
        for name in files_a:
            if name in files_b:
                difference = _tensor_difference(name, files_a[name], files_b[name])
                equal += difference is None
                tensors += [difference] if difference else []
    return Difference(
        (a.step, b.step),
        _fields(a.settings(), b.settings()),
        _fields(a.manifest.topology.model_dump(), b.manifest.topology.model_dump()),
        a.manifest.dataset_fingerprint == b.manifest.dataset_fingerprint,
        tensors,
        only_in_a,
        only_in_b,
        equal,
    )


def _tensor_difference(name: str, a: Tensor, b: Tensor) -> TensorDifference | None:
    shapes = (tuple(a.shape), tuple(b.shape))
    if a.shape != b.shape:
        return TensorDifference(name, None, None, shapes)
    if a.dtype == b.dtype and a.flatten().view(torch.uint8).equal(b.flatten().view(torch.uint8)):
        return None
    # In fp64, so that the difference of two fp32 numbers cannot overflow.
    max_abs, largest = (a.double() - b.double()).abs().max().item(), a.double().abs().max().item()
    if max_abs == 0:  # 0 and -0
        return TensorDifference(name, 0.0, 0.0, shapes)
    relative = max_abs / largest if largest else math.inf
    return TensorDifference(name, _number(max_abs), _number(relative), shapes)


def _number(value: float) -> float | None:
    """The value if JSON can represent it, else None."""
    return value if math.isfinite(value) else None


def _fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {field: (a.get(field), b.get(field)) for field in sorted({*a, *b}) if a.get(field) != b.get(field)}
