"""What a benchmark is made of: a case, its implementations, its limits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tests.support.tolerances import BF16, COMPLEX, SIMPLE

Size = Literal["cpu", "gpu", "tiny"]
"""Which shapes to use: those of a suite, or those of the tests."""
Direction = Literal["forward", "backward", "forward+backward", "step"]
Role = Literal["ours", "peer", "baseline", "limit"]
"""A baseline is our own code in another form; goals do not compare with it."""
Named = dict[str, Tensor]


class Unavailable(Exception):
    """An implementation that this machine does not have; the message names what is missing."""


def _as_it_is(tensors: Named) -> Named:
    return tensors


def nothing() -> None:
    """No preparation."""


class Step(NamedTuple):
    """Something to time. `prepare` runs before it, untimed, and `run` gets what it returns."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = nothing


@dataclass(frozen=True)
class Candidate:
    """An implementation bound to its own inputs and weights."""

    forward: Callable[[], Named]
    """Computes the outputs by name, with a graph."""
    leaves: Mapping[str, Tensor]
    """The tensors that get a gradient."""
    outputs: Callable[[Named], Named] = _as_it_is
    """Converts what `forward` returns to the names and shapes of the reference; not timed."""
    gradients: Callable[[Named], Named] = _as_it_is
    """Converts the gradients of the leaves to the names and shapes of the reference."""
    step: Callable[[], object] | None = None
    """Timed instead of forward and backward if the direction is `step`."""


@dataclass(frozen=True)
class Implementation:
    """One competitor. It is built when its turn comes; this may raise Unavailable."""

    name: str
    role: Role
    build: Callable[[], Candidate]
    note: str = ""
    """What a reader must know besides the time, such as "drops tokens"."""
    compared: bool = True
    """Whether it computes the same function, so that it can be checked."""


class LimitStep(NamedTuple):
    """One way to reach a limit."""

    label: str
    step: Step
    amount: float
    """Floating-point operations, or bytes."""


@dataclass(frozen=True)
class Limit:
    """What bounds a case. Its rate is that of its fastest step."""

    name: str
    unit: Literal["FLOP/s", "B/s"]
    steps: Sequence[LimitStep]


@dataclass(frozen=True)
class Case:
    """One problem of one size, its competitors and its limits."""

    op: str
    name: str
    shape: Mapping[str, int | str]
    directions: Sequence[Direction]
    reference: Callable[[], Candidate]
    """In fp64, on the same inputs and weights."""
    implementations: Sequence[Implementation]
    limits: Sequence[Limit]
    work: Mapping[Direction, Mapping[str, float]]
    """For each direction: limit -> amount of work (FLOP or B). The first limit is the one in the tables."""
    dtype: torch.dtype
    device: torch.device
    rounds: int
    """Rounds unless --rounds is given."""
    roundings: tuple[int, int] = (2, 2)
    """In half precision: the most tensors of that format that a value passes through on its way to an output, and to a
    gradient."""
    tokens: int | None = None
    """Tokens that are processed, if tokens per second are of interest."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For the record: how `work` was calculated."""

    @property
    def tolerances(self) -> tuple[float, float]:
        """For outputs and for gradients, from the project's table of tolerances, in which BF16 means two roundings."""
        if self.dtype.itemsize == 4:
            return SIMPLE, COMPLEX
        outputs, gradients = self.roundings
        return outputs * BF16 / 2, gradients * BF16 / 2


def leaf(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A separate leaf tensor with the same values, which gets a gradient."""
    return tensor.detach().to(dtype or tensor.dtype, copy=True).requires_grad_()


DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
