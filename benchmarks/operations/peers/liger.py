"""Liger Kernel (Hsu et al. 2024): Triton kernels for CUDA. Written for version 0.8."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.operations.case import Unavailable
from benchmarks.operations.peers import member
from benchmarks.operations.peers.torch_layers import top_k_router


def rms_norm(weight_D: nn.Parameter, eps: float) -> Callable[[Tensor], Tensor]:
    """LigerRMSNorm with this gain; its backward pass overwrites the gradient that it gets."""
    norm: Callable[[Tensor], Tensor] = _norm("LigerRMSNorm", weight_D, eps)
    return norm


def add_rms_norm(weight_D: nn.Parameter, eps: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """LigerFusedAddRMSNorm with this gain: x and residual to the normalized sum and the sum."""
    norm: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _norm("LigerFusedAddRMSNorm", weight_D, eps)
    return norm


def linear_cross_entropy(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """LigerFusedLinearCrossEntropyLoss: x [T, D], weight [V, D] and target [T] to the sum over tokens."""
    loss = _member("transformers", "LigerFusedLinearCrossEntropyLoss", device)(reduction="sum")
    return lambda x_TD, weight_VD, target_T: loss(weight_VD, x_TD, target_T)


def experts(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Torch's grouped products with Liger's SwiGLU between them: rows in expert order, [N, D] to [N, D]."""
    silu_mul = _member("ops", "LigerSiLUMulFunction", device)

    def between(x_ND: Tensor, end_E: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
        gate_NI, up_NI = F.grouped_mm(x_ND, gate_up_EHD.transpose(1, 2), offs=end_E).chunk(2, dim=-1)
        act_NI = silu_mul.apply(gate_NI, up_NI, 1.0, 1.0)
        return F.grouped_mm(act_NI, down_EDI.transpose(1, 2), offs=end_E)

    return between


def layer(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
    """Mixtral's router and Liger's fused experts, the function that its LigerExperts calls."""
    fused = _member("ops", "LigerFusedMoEFunction", device)

    def moe_layer(x_TD: Tensor, router_ED: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor, K: int) -> Tensor:
        weight_TK, expert_TK = top_k_router(x_TD, router_ED, K)
        out: Tensor = fused.apply(x_TD, gate_up_EHD, down_EDI, expert_TK.int(), weight_TK)
        return out

    return moe_layer


def _norm(name: str, weight_D: nn.Parameter, eps: float) -> Any:
    """One of Liger's norms, with this very parameter as its gain."""
    norm = _member("transformers", name, weight_D.device)(len(weight_D), eps=eps)
    norm.weight = weight_D
    return norm


def _member(module: str, name: str, device: torch.device) -> Any:
    if device.type != "cuda":
        raise Unavailable("not available: Liger needs CUDA")
    return member(f"liger_kernel.{module}", name)
