"""What plain torch offers: an MoE layer on its grouped product, and torch.compile."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.operations.case import Unavailable
from benchmarks.operations.moe_problem import swiglu


def grouped_mm_experts(x_ND: Tensor, end_E: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    """SwiGLU experts on torch's grouped product: rows in expert order, [N, D] to [N, D].

    Raises:
        Unavailable: this torch has no grouped product.
    """
    if not hasattr(F, "grouped_mm"):
        raise Unavailable("not available: torch.nn.functional.grouped_mm came with torch 2.10")
    hidden_NH = F.grouped_mm(x_ND, gate_up_EHD.transpose(1, 2), offs=end_E)
    return F.grouped_mm(swiglu(hidden_NH), down_EDI.transpose(1, 2), offs=end_E)


def top_k_router(x_TD: Tensor, router_ED: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """Gate weights [T, K] fp32 and experts [T, K] int64, chosen as in Mixtral, with logits in fp32."""
    weight_TK, expert_TK = torch.softmax(x_TD.float() @ router_ED.float().t(), dim=1).topk(K, dim=1)
    return weight_TK / weight_TK.sum(dim=1, keepdim=True), expert_TK


def grouped_mm_layer(x_TD: Tensor, router_ED: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor, K: int) -> Tensor:
    """An MoE layer as one would write it with torch alone: sort, grouped products, weighted scatter."""
    weight_TK, expert_TK = top_k_router(x_TD, router_ED, K)
    order_N = expert_TK.flatten().argsort(stable=True)
    end_E = torch.bincount(expert_TK.flatten(), minlength=len(router_ED)).cumsum(0, dtype=torch.int32)
    token_N = order_N // K
    expert_out_ND = grouped_mm_experts(x_TD[token_N], end_E, gate_up_EHD, down_EDI)
    weighted_ND = expert_out_ND * weight_TK.flatten()[order_N, None].to(expert_out_ND.dtype)
    return torch.zeros_like(x_TD).index_add(0, token_N, weighted_ND)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a function, for fixed shapes. It compiles at the first call, which is never timed.

    Raises:
        Unavailable: there is no compiler for this device.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    obstacle = _compiler_obstacle(device)
    if obstacle:
        raise Unavailable(f"not available: {obstacle}")
    # Compilations for earlier cases count towards the number of recompilations that torch allows.
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


@functools.cache
def _compiler_obstacle(device: str) -> str:
    """Why torch.compile does not work here; empty if it works."""
    try:
        torch.compile(lambda x: F.silu(x) * 2)(torch.ones(8, device=device))
    # torch.compile's errors are RuntimeErrors; a compiler that is missing or does not start is an OSError.
    except (RuntimeError, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ""
