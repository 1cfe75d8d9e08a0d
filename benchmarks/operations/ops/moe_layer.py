"""The whole MoE layer, forward and backward. Bound by the experts' matrix products."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from storyteller_kernels import combine, route
from storyteller_kernels.expert_mlp import expert_mlp
from storyteller_kernels.expert_mlp import reference as expert_reference
from storyteller_kernels.permute import autograd as moves
from storyteller_kernels.routing import reference as routing_reference
from torch import Tensor

from benchmarks.operations.case import DTYPE_NAMES, Candidate, Case, Implementation, Size
from benchmarks.operations.flops import expert_flops, router_flops
from benchmarks.operations.goals import Goal
from benchmarks.operations.limits import BARE_BMM, bare_bmm, matrix_products
from benchmarks.operations.moe_problem import MoEProblem, MoEShape, draw, exact, of_function, of_module
from benchmarks.operations.peers import deepspeed_layers, liger, transformers_mixtral
from benchmarks.operations.peers.torch_layers import compiled, grouped_mm_layer

SHAPES: dict[Size, tuple[MoEShape, torch.dtype]] = {
    "cpu": (MoEShape(T=2048, D=256, I=512, E=8, K=2), torch.float32),
    "gpu": (MoEShape(T=16384, D=1024, I=2048, E=8, K=2), torch.bfloat16),
    "tiny": (MoEShape(T=32, D=16, I=8, E=4, K=2), torch.float32),
}
PRODUCTS: dict[Size, list[tuple[int, int, int]]] = {
    "cpu": [(1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 1024), (512, 256, 1024)],
    "gpu": [(4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 8192), (32768, 1024, 4096)],
    "tiny": [(16, 16, 16), (32, 16, 16)],
}
"""Shapes of the matrix product that is the limit: large ones, and those of the experts."""

STOCK, EAGER, GROUPED = "stock DeepSpeed, dropless", "transformers Mixtral, eager", "transformers Mixtral, grouped_mm"
LIGER = "Liger, fused experts"

_ON_CPU = [
    Goal("at least 1.1x the best dropless peer", "moe_layer", "forward+backward", 1.1, peers=(STOCK, EAGER, GROUPED)),
    Goal("at least 0.95 of a bare bmm", "moe_layer", "forward+backward", 0.95, limit=BARE_BMM),
]
_ON_GPU = [
    Goal("at least 2x stock DeepSpeed", "moe_layer", "forward+backward", 2.0, peers=(STOCK,)),
    Goal("not slower than transformers grouped_mm", "moe_layer", "forward+backward", 1.0, peers=(GROUPED,)),
    Goal("not slower than Liger", "moe_layer", "forward+backward", 1.0, peers=(LIGER,)),
    Goal("at least 0.7 of a bare bmm", "moe_layer", "forward+backward", 0.7, limit=BARE_BMM),
]
GOALS: dict[Size, list[Goal]] = {"cpu": _ON_CPU, "gpu": _ON_GPU, "tiny": _ON_CPU}


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """The suite's single case."""
    shape, dtype = SHAPES[size]
    yield case(shape, dtype, device, size)


def case(shape: MoEShape, dtype: torch.dtype, device: torch.device, size: Size) -> Case:
    """The layer with one shape."""
    problem = draw(shape, dtype, device)
    T, D, I, E, K = shape
    experts = 3 * expert_flops(shape.rows, D, I)
    products = experts + 3 * router_flops(T, D, E)
    rates = matrix_products(PRODUCTS[size], dtype, device)

    def peer(name: str, build: Callable[..., Candidate], *arguments: Any, **options: Any) -> Implementation:
        return Implementation(name, "peer", partial(build, problem, *arguments, **options))

    implementations = [
        _ours(problem),
        Implementation("reference", "baseline", partial(of_function, problem, reference_layer)),
        peer(STOCK, deepspeed_layers.stock_layer, **deepspeed_layers.DROPLESS),
        Implementation(
            "stock DeepSpeed, capacity 1",
            "peer",
            partial(deepspeed_layers.stock_layer, problem, **deepspeed_layers.CAPACITY_1),
            note="drops tokens",
            compared=False,
        ),
        peer(EAGER, transformers_mixtral.block, "eager"),
        peer(GROUPED, transformers_mixtral.block, "grouped_mm"),
        peer("torch grouped_mm", of_function, grouped_mm_layer),
        Implementation(LIGER, "peer", lambda: of_function(problem, liger.layer(device))),
    ]
    if device.type == "cuda":
        implementations.append(peer("DeepSpeed AutoEP", deepspeed_layers.autoep_layer))
    if size != "tiny":
        compiled_reference = Implementation(
            "torch.compile of the reference", "peer", lambda: of_function(problem, compiled(reference_layer))
        )
        implementations.append(compiled_reference)
    return Case(
        op="moe_layer",
        name=f"T={T} D={D} I={I} E={E} K={K} {DTYPE_NAMES[dtype]}",
        shape={**shape._asdict(), "dtype": DTYPE_NAMES[dtype]},
        directions=["forward+backward"],
        reference=partial(exact, problem),
        implementations=implementations,
        limits=[bare_bmm(shape.rows, D, I, E, dtype, device), *rates],
        work={"forward+backward": {BARE_BMM: experts, **{rate.name: products for rate in rates}}},
        dtype=dtype,
        device=device,
        # Hidden, activation, expert output, weighted output, sum; backward, those of the experts and four gradients.
        roundings=(5, 8),
        rounds=30 if device.type == "cuda" else 15,
        tokens=T,
    )


def reference_layer(x_TD: Tensor, router_ED: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor, K: int) -> Tensor:
    """The layer from the plain torch references of our operations."""
    routing = routing_reference.route(x_TD, router_ED, K)
    rows_ND = moves.permute(x_TD, routing.token_N, routing.row_TK)
    expert_out_ND = expert_reference.expert_mlp(rows_ND, routing.count_E, gate_up_EHD, down_EDI, "swiglu")
    order = (routing.token_N, routing.row_TK)
    return moves.combine(expert_out_ND, routing.weight_TK, *order)


def operations_layer(x_TD: Tensor, router_ED: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor, K: int) -> Tensor:
    """The layer from our operations, without the framework around it."""
    routing = route(x_TD, router_ED, K)
    order = {"token_N": routing.token_N, "row_TK": routing.row_TK}
    expert_out_ND = expert_mlp(x_TD, routing.count_E, gate_up_EHD, down_EDI, "swiglu", **order)
    return combine(expert_out_ND, routing.weight_TK, routing.token_N, routing.row_TK)


def _ours(problem: MoEProblem) -> Implementation:
    """The framework's layer, or, if the framework's dependencies are missing, the operations that it consists of."""
    try:
        from storyteller_ds.model.moe.local import LocalMoE  # noqa: F401  # only to see whether it is available
    except ModuleNotFoundError as error:
        note = f"the operations alone: LocalMoE needs {error.name}"
        return Implementation("ours", "ours", partial(of_function, problem, operations_layer), note)
    return Implementation("ours", "ours", partial(local_moe, problem), "storyteller_ds LocalMoE")


def local_moe(problem: MoEProblem) -> Candidate:
    """`storyteller_ds.model.moe.LocalMoE` with the problem's weights."""
    from storyteller_ds.config.model import ModelConfig, MoEConfig
    from storyteller_ds.model.moe.local import LocalMoE

    _, D, I, E, K = problem.shape
    model = ModelConfig(hidden_size=D, intermediate_size=I, num_heads=1)
    layer = LocalMoE(model, MoEConfig(num_experts=E, top_k=K)).to(problem.x_TD)
    weights = {
        "router": layer.router.weight,
        "gate_up": layer.experts.gate_up_proj,
        "down": layer.experts.down_proj,
    }
    with torch.no_grad():
        weights["router"].copy_(problem.router_ED)
        weights["gate_up"].copy_(problem.gate_up_EHD)
        weights["down"].copy_(problem.down_EDI)
    return of_module(problem, layer, weights, lambda gradients: gradients)
