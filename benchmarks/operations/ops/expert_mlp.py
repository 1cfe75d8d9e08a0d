"""The experts alone: SwiGLU experts on rows that are already in expert order, as the router leaves them."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from storyteller_kernels.dispatch import runs_on_triton
from storyteller_kernels.expert_mlp import expert_mlp, reference
from torch import Tensor

from benchmarks.operations.case import DTYPE_NAMES, Candidate, Case, Implementation, Named, Size, leaf
from benchmarks.operations.flops import expert_flops
from benchmarks.operations.goals import Goal
from benchmarks.operations.limits import BARE_BMM, bare_bmm, matrix_products
from benchmarks.operations.moe_problem import MoEProblem, draw, exact_gate_weights
from benchmarks.operations.ops import moe_layer
from benchmarks.operations.peers import liger
from benchmarks.operations.peers.torch_layers import compiled, grouped_mm_experts

Experts = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From (rows [N, D], count_E or end_E, gate_up [E, 2I, D], down [E, D, I]) to [N, D]."""


GOALS: dict[Size, list[Goal]] = {}
"""It has no goals of its own: those of the whole layer are in moe_layer."""


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """The rows of the whole layer's case."""
    shape, dtype = moe_layer.SHAPES[size]
    problem = draw(shape, dtype, device)
    _, weight_TE = exact_gate_weights(problem.x_TD.double(), problem.router_ED.double(), shape.K)
    expert_N, token_N = (weight_TE.t() > 0).nonzero(as_tuple=True)
    rows_ND, count_E = problem.x_TD[token_N], torch.bincount(expert_N, minlength=shape.E)
    end_E = count_E.cumsum(0, dtype=torch.int32)

    def of(function: Experts, division_E: Tensor) -> Candidate:
        leaves = _leaves(problem, rows_ND)
        return Candidate(lambda: {"y": function(leaves["x"], division_E, leaves["gate_up"], leaves["down"])}, leaves)

    implementations = [
        Implementation("ours", "ours", lambda: of(_ours, count_E)),
        Implementation("reference", "baseline", lambda: of(_reference, count_E)),
        Implementation("torch grouped_mm", "peer", lambda: of(grouped_mm_experts, end_E)),
        Implementation("Liger SwiGLU between torch grouped_mm", "peer", lambda: of(liger.experts(device), end_E)),
    ]
    if runs_on_triton(rows_ND):
        for name, library in (("ours, products in Triton", False), ("ours, torch's products", True)):
            both = partial(_on_triton, library)
            implementations.append(Implementation(name, "baseline", partial(of, both, end_E)))
    if size != "tiny":
        compiled_reference = Implementation(
            "torch.compile of the reference", "peer", lambda: of(compiled(_reference), count_E)
        )
        implementations.append(compiled_reference)
    _, D, I, E, _ = shape
    flops = 3 * expert_flops(shape.rows, D, I)
    rates = matrix_products(moe_layer.PRODUCTS[size], dtype, device)
    yield Case(
        op="expert_mlp",
        name=f"N={shape.rows} D={D} I={I} E={E} {DTYPE_NAMES[dtype]}",
        shape={"N": shape.rows, "D": D, "I": I, "E": E, "dtype": DTYPE_NAMES[dtype]},
        directions=["forward+backward"],
        reference=lambda: _exact(problem, rows_ND, count_E.tolist()),
        implementations=implementations,
        limits=[
            bare_bmm(shape.rows, D, I, E, dtype, device),
            *rates,
        ],
        work={"forward+backward": {BARE_BMM: flops, **{rate.name: flops for rate in rates}}},
        dtype=dtype,
        device=device,
        # Hidden, activation, expert output; backward the first two, and their gradients, and the result.
        roundings=(3, 5),
        rounds=30 if device.type == "cuda" else 15,
    )


def _leaves(problem: MoEProblem, rows_ND: Tensor, dtype: torch.dtype | None = None) -> Named:
    tensors = {"x": rows_ND, "gate_up": problem.gate_up_EHD, "down": problem.down_EDI}
    return {name: leaf(tensor, dtype) for name, tensor in tensors.items()}


def _ours(x_ND: Tensor, count_E: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    return expert_mlp(x_ND, count_E, gate_up_EHD, down_EDI, "swiglu")


def _reference(x_ND: Tensor, count_E: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    return reference.expert_mlp(x_ND, count_E, gate_up_EHD, down_EDI, "swiglu")


def _on_triton(library: bool, x_ND: Tensor, end_E: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    """Our Triton path with a choice of matrix products, so that the two can be compared."""
    from storyteller_kernels.expert_mlp import operators

    return operators.expert_mlp(x_ND, gate_up_EHD, down_EDI, end_E, library=library)


def _exact(problem: MoEProblem, rows_ND: Tensor, counts: list[int]) -> Candidate:
    """The reference: expert by expert in fp64."""
    leaves = _leaves(problem, rows_ND, torch.float64)

    def forward() -> Named:
        outputs = []
        for e, x_RD in enumerate(leaves["x"].split(counts)):
            gate_RI, up_RI = (x_RD @ leaves["gate_up"][e].t()).chunk(2, dim=1)
            outputs.append((gate_RI * torch.sigmoid(gate_RI) * up_RI) @ leaves["down"][e].t())
        return {"y": torch.cat(outputs)}

    return Candidate(forward, leaves)
