"""The loss over the vocabulary, from hidden states and output embedding: time, and memory on a GPU."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from storyteller_kernels.cross_entropy import linear_cross_entropy, reference
from torch import Tensor
from torch.nn import functional as F

from benchmarks.operations.case import DTYPE_NAMES, Candidate, Case, Implementation, Named, Size, Unavailable, leaf
from benchmarks.operations.goals import Goal
from benchmarks.operations.limits import matrix_products
from benchmarks.operations.ops import moe_layer
from benchmarks.operations.peers import liger
from benchmarks.operations.peers.torch_layers import compiled

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From (x [T, D], weight [V, D], target [T]) to the sum over tokens, []."""


class Shape(NamedTuple):
    """T tokens, D model width, V vocabulary."""

    T: int
    D: int
    V: int


SHAPES: dict[Size, tuple[Shape, torch.dtype]] = {
    "cpu": (Shape(2048, 256, 4096), torch.float32),
    "gpu": (Shape(16384, 1024, 32768), torch.bfloat16),
    "tiny": (Shape(9, 16, 40), torch.float32),
}


GOALS: dict[Size, list[Goal]] = {}
"""It has no goals of its own."""


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """The suite's single case."""
    (T, D, V), dtype = SHAPES[size]
    generator = torch.Generator(device).manual_seed(0)
    inputs = {
        "x": torch.randn(T, D, generator=generator, device=device).to(dtype),
        "weight": (torch.randn(V, D, generator=generator, device=device) * D**-0.5).to(dtype),
    }
    target_T = torch.randint(V, (T,), generator=generator, device=device)

    def of(loss: Loss, dtype: torch.dtype | None = None) -> Candidate:
        leaves: Named = {name: leaf(tensor, dtype) for name, tensor in inputs.items()}
        return Candidate(lambda: {"nll_sum": loss(leaves["x"], leaves["weight"], target_T)}, leaves)

    implementations = [
        Implementation("ours", "ours", lambda: of(linear_cross_entropy)),
        Implementation("reference (whole logits)", "baseline", lambda: of(reference.linear_cross_entropy)),
        Implementation("torch F.linear_cross_entropy", "peer", lambda: of(_torch_loss())),
        Implementation("Liger", "peer", lambda: of(liger.linear_cross_entropy(device))),
    ]
    if size != "tiny":
        compiled_reference = Implementation(
            "torch.compile of the reference",
            "peer",
            lambda: of(compiled(reference.linear_cross_entropy)),
        )
        implementations.append(compiled_reference)
    rates = matrix_products(moe_layer.PRODUCTS[size], dtype, device)
    yield Case(
        op="cross_entropy",
        name=f"T={T} D={D} V={V} {DTYPE_NAMES[dtype]}",
        shape={"T": T, "D": D, "V": V, "dtype": DTYPE_NAMES[dtype]},
        directions=["forward+backward"],
        reference=lambda: of(_definition, torch.float64),
        implementations=implementations,
        limits=rates,
        work={"forward+backward": {rate.name: 6.0 * T * D * V for rate in rates}},
        dtype=dtype,
        device=device,
        # The logits, their gradient, the result.
        roundings=(2, 3),
        rounds=20 if device.type == "cuda" else 15,
        tokens=T,
    )


def _definition(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
    logit_TV = x_TD @ weight_VD.t()
    return (torch.logsumexp(logit_TV, dim=1) - logit_TV.gather(1, target_T[:, None])[:, 0]).sum()


def _torch_loss() -> Loss:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable("not available: torch.nn.functional.linear_cross_entropy came with torch 2.13")
    return lambda x_TD, weight_VD, target_T: F.linear_cross_entropy(x_TD, weight_VD, target_T, reduction="sum")
