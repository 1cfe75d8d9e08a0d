"""An MoE layer's inputs and weights, its fp64 reference, and candidates built from functions and modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.operations.case import Candidate, Named, leaf

MARGIN = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Least distance between the logits of the last chosen expert and the next one. Closer ones are decided by rounding: an
implementation that computes the logits in the dtype of x could choose differently without being wrong."""


class MoEShape(NamedTuple):
    """T tokens, D model width, I expert width, E experts, K choices per token."""

    T: int
    D: int
    I: int
    E: int
    K: int

    @property
    def rows(self) -> int:
        """N: each token counts once for each of its experts."""
        return self.T * self.K


@dataclass(frozen=True)
class MoEProblem:
    """One problem: tokens and weights in the dtype of the case."""

    shape: MoEShape
    x_TD: Tensor
    router_ED: Tensor
    gate_up_EHD: Tensor
    down_EDI: Tensor

    def leaves(self, dtype: torch.dtype | None = None) -> Named:
        """Copies of tokens and weights that get gradients, in another dtype if wanted."""
        return {
            "x": leaf(self.x_TD, dtype),
            "router": leaf(self.router_ED, dtype),
            "gate_up": leaf(self.gate_up_EHD, dtype),
            "down": leaf(self.down_EDI, dtype),
        }


def draw(shape: MoEShape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> MoEProblem:
    """Random tokens and weights; all activations are about 1. Tokens whose choice is nearly tied are drawn again."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, std: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator, device=device) * std).to(dtype)

    T, D, I, E, K = shape
    x_TD, router_ED = normal(T, D), normal(E, D, std=D**-0.5)
    while len(undecided := nearly_tied(x_TD, router_ED, K, MARGIN[dtype])):
        x_TD[undecided] = normal(len(undecided), D)
    return MoEProblem(
        shape, x_TD, router_ED, normal(E, 2 * I, D, std=(D / 2) ** -0.5), normal(E, D, I, std=(I / 2) ** -0.5)
    )


def nearly_tied(x_TD: Tensor, router_ED: Tensor, K: int, margin: float) -> Tensor:
    """[n] int64: tokens whose K-th and next logits differ by less than the margin."""
    if len(router_ED) == K:
        return torch.empty(0, dtype=torch.int64, device=x_TD.device)
    best = (x_TD.double() @ router_ED.double().t()).topk(K + 1, dim=1).values
    return (best[:, K - 1] - best[:, K] < margin).nonzero().flatten()


def exact_gate_weights(x_TD: Tensor, router_ED: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The router by its definition, for the references: logits [T, E], and each expert's share of each token [T, E]."""
    logit_TE = x_TD @ router_ED.t()
    prob_TE = torch.softmax(logit_TE, dim=1)
    chosen_TE = torch.zeros_like(prob_TE, dtype=torch.bool).scatter_(1, prob_TE.topk(K, dim=1).indices, True)
    kept_TE = prob_TE * chosen_TE
    return logit_TE, kept_TE / kept_TE.sum(dim=1, keepdim=True)


def exact(problem: MoEProblem) -> Candidate:
    """The layer in fp64, expert by expert, without any of our code."""
    leaves = problem.leaves(torch.float64)

    def forward() -> Named:
        _, weight_TE = exact_gate_weights(leaves["x"], leaves["router"], problem.shape.K)
        out_TD = torch.zeros_like(leaves["x"])
        for e in range(problem.shape.E):
            token_R = (weight_TE[:, e] > 0).nonzero().flatten()
            gate_RI, up_RI = (leaves["x"][token_R] @ leaves["gate_up"][e].t()).chunk(2, dim=1)
            expert_out_RD = (gate_RI * torch.sigmoid(gate_RI) * up_RI) @ leaves["down"][e].t()
            out_TD = out_TD.index_add(0, token_R, weight_TE[token_R, e, None] * expert_out_RD)
        return {"y": out_TD}

    return Candidate(forward, leaves)


def of_function(problem: MoEProblem, layer: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]) -> Candidate:
    """A candidate from a layer that is a function of (x, router, gate_up, down, K)."""
    leaves = problem.leaves()
    x, router, gate_up, down = leaves.values()
    return Candidate(lambda: {"y": layer(x, router, gate_up, down, problem.shape.K)}, leaves)


def of_module(
    problem: MoEProblem, module: nn.Module, weights: Mapping[str, Tensor], gradients: Callable[[Named], Named]
) -> Candidate:
    """A candidate from a module that takes [1, T, D] and returns the same shape, alone or first in a tuple.

    Args:
        problem: the problem.
        module: already has the problem's weights.
        weights: its parameters, by its own names.
        gradients: converts those names, and `x`, to the names and shapes of the problem.
    """
    x = leaf(problem.x_TD)

    def forward() -> Named:
        out = module(x[None])
        return {"y": (out[0] if isinstance(out, tuple) else out).reshape(x.shape)}

    return Candidate(forward, {"x": x, **weights}, gradients=gradients)


def swiglu(hidden: Tensor) -> Tensor:
    """[..., 2I] to [..., I]: silu(first half) * second half."""
    gate, up = hidden.chunk(2, dim=-1)
    return F.silu(gate) * up
