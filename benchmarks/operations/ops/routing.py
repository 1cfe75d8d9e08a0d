"""Routing: from token vectors to each token's row at each of its experts. Bound by the bytes that it moves."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from storyteller_kernels.routing import reference, route
from storyteller_kernels.routing.reference import Routing
from torch import Tensor

from benchmarks.operations.case import DTYPE_NAMES, Candidate, Case, Direction, Implementation, Named, Size
from benchmarks.operations.goals import Goal
from benchmarks.operations.limits import COPY, copy
from benchmarks.operations.moe_problem import MoEProblem, MoEShape, draw, exact_gate_weights
from benchmarks.operations.ops import moe_layer
from benchmarks.operations.peers import deepspeed_layers
from benchmarks.operations.peers.torch_layers import compiled, top_k_router

STOCK_GATE = "stock DeepSpeed gate"
GOALS: dict[Size, list[Goal]] = {
    "gpu": [
        Goal("at least 3x the stock DeepSpeed gate", "routing", "forward", 3.0, peers=(STOCK_GATE,)),
        Goal("at most 2x the byte floor (at least 0.5 of it)", "routing", "forward", 0.5, limit=COPY),
    ]
}


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """A case with the tokens of the whole layer's case."""
    shape, dtype = moe_layer.SHAPES[size]
    problem = draw(shape, dtype, device)
    T, D, _, E, K = shape

    def peer(name: str, router: Callable[[Tensor, Tensor, int], Routing]) -> Implementation:
        return Implementation(name, "peer", lambda: _of_routing(problem, router))

    implementations = [
        Implementation("ours", "ours", lambda: _of_routing(problem, route)),
        Implementation("reference", "baseline", lambda: _of_routing(problem, reference.route)),
        Implementation(STOCK_GATE, "peer", partial(deepspeed_layers.stock_gate, problem), "no token order, no sums"),
        Implementation("torch topk and argsort", "peer", partial(_torch_router, problem), "no sums for the losses"),
    ]
    if size != "tiny":
        compiled_reference = Implementation(
            "torch.compile of the reference",
            "peer",
            lambda: _of_routing(problem, compiled(reference.route)),
        )
        implementations.append(compiled_reference)
    work = bytes_moved(shape, dtype)
    yield Case(
        op="routing",
        name=f"T={T} D={D} E={E} K={K} {DTYPE_NAMES[dtype]}",
        shape={"T": T, "D": D, "E": E, "K": K, "dtype": DTYPE_NAMES[dtype]},
        directions=["forward", "backward"],
        reference=partial(_exact, problem),
        implementations=implementations,
        limits=[copy(T * D * dtype.itemsize, dtype, device)],
        work={direction: {COPY: float(moved)} for direction, moved in work.items()},
        dtype=dtype,
        device=device,
        rounds=50 if device.type == "cuda" else 15,
    )


def bytes_moved(shape: MoEShape, dtype: torch.dtype) -> dict[Direction, int]:
    """The minimum number of bytes to move, as counted in the operation's README."""
    T, D, _, E, K = shape
    x = T * D * dtype.itemsize
    return {
        "forward": x + 4 * T * (E + 1) + 4 * T * K + 3 * 8 * T * K,
        "backward": 2 * x + 4 * T * (2 * E + 1) + 16 * T * K,
    }


def _of_routing(problem: MoEProblem, router: Callable[[Tensor, Tensor, int], Routing]) -> Candidate:
    leaves = _leaves(problem)

    def forward() -> Named:
        return router(leaves["x"], leaves["router"], problem.shape.K)._asdict()

    return Candidate(forward, leaves, partial(_comparable, problem.shape.E))


def _comparable(E: int, raw: Named) -> Named:
    """Leave out the order of a token's own choices, which nothing depends on."""
    weight_TE = torch.zeros(len(raw["expert_TK"]), E, dtype=raw["weight_TK"].dtype, device=raw["weight_TK"].device)
    names = {"prob_TE": "prob", "prob_sum_E": "prob_sum", "z_sum": "z_sum", "count_E": "count", "token_N": "token"}
    # Checks that row_TK inverts token_N: row n holds the token token_N[n].
    token_of_row_TK = raw["token_N"][raw["row_TK"]]
    return {
        "gate weight": weight_TE.scatter(1, raw["expert_TK"], raw["weight_TK"]),
        "token_of_row": token_of_row_TK,
        "entropy_sum": raw["entropy_sum"],
        **{ours: raw[name] for name, ours in names.items()},
    }


def _torch_router(problem: MoEProblem) -> Candidate:
    """What a layer with torch alone needs: gate weights, experts, and tokens in expert order."""
    leaves, E = _leaves(problem), problem.shape.E

    def forward() -> Named:
        weight_TK, expert_TK = top_k_router(leaves["x"], leaves["router"], problem.shape.K)
        order_N = expert_TK.flatten().argsort(stable=True)
        return {
            "weight_TK": weight_TK,
            "expert_TK": expert_TK,
            "token_N": order_N // problem.shape.K,
            "count_E": torch.bincount(expert_TK.flatten(), minlength=E),
        }

    def outputs(raw: Named) -> Named:
        weight_TE = torch.zeros(len(leaves["x"]), E, device=raw["weight_TK"].device)
        weight_TE = weight_TE.scatter(1, raw["expert_TK"], raw["weight_TK"])
        return {"gate weight": weight_TE, "token": raw["token_N"], "count": raw["count_E"]}

    return Candidate(forward, leaves, outputs)


def _exact(problem: MoEProblem) -> Candidate:
    """The reference: by definition, in fp64; rows from a search for every expert's tokens."""
    leaves = _leaves(problem, torch.float64)
    T, _, _, E, K = problem.shape

    def forward() -> Named:
        logit_TE, weight_TE = exact_gate_weights(leaves["x"], leaves["router"], K)
        prob_TE, log_z_T = torch.softmax(logit_TE, dim=1), torch.logsumexp(logit_TE, dim=1)
        expert_N, token_N = (weight_TE.t() > 0).nonzero(as_tuple=True)
        return {
            "gate weight": weight_TE,
            "prob": prob_TE,
            "prob_sum": prob_TE.sum(dim=0),
            "z_sum": log_z_T.square().sum(),
            "entropy_sum": -(prob_TE * prob_TE.log()).sum().detach(),
            "count": torch.bincount(expert_N, minlength=E),
            "token": token_N,
            "token_of_row": torch.arange(T, device=token_N.device)[:, None].expand(T, K),
        }

    return Candidate(forward, leaves)


def _leaves(problem: MoEProblem, dtype: torch.dtype | None = None) -> Named:
    leaves = problem.leaves(dtype)
    return {name: leaves[name] for name in ("x", "router")}
