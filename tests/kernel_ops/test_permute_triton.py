"""What holds for permute and combine on Triton alone; test_permute.py tests what holds for every implementation."""

from typing import Any, NamedTuple

import pytest
import torch
from storyteller_kernels import combine, permute
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.tolerances import BF16, COMPLEX, assert_within


class Plan(NamedTuple):
    token_N: Tensor
    row_TK: Tensor


def random_plan(tokens: int, experts: int, top_k: int) -> Plan:
    expert_N = torch.rand(tokens, experts).topk(top_k).indices.flatten()
    order_N = expert_N.argsort(stable=True)
    return Plan(order_N // top_k, order_N.argsort().view(tokens, top_k))


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation under it returns."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return out


def test_rows_add_up_in_fp32(triton_device):
    with torch.device(triton_device):
        plan = random_plan(1, 4, 4)
        y_ND = torch.ones(4, 1, dtype=torch.bfloat16)
        y_ND[plan.row_TK[0, 0]] = 256.0
        # 256 + 1 + 1 + 1 = 259, which rounds to 260; added in bf16, it would stay 256.
        assert combine(y_ND, torch.ones(1, 4), *plan).item() == 260.0
        cotangent_ND, x_TD = y_ND, torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
        permute(x_TD, *plan).backward(cotangent_ND)
        assert x_TD.grad.item() == 260.0


def test_nothing_larger_than_the_rows_is_made(triton_device):
    tokens, top_k, width = 80, 4, 64
    with torch.device(triton_device):
        plan = random_plan(tokens, 8, top_k)
        x_TD = torch.randn(tokens, width).bfloat16().requires_grad_()
        weight_TK = torch.rand(tokens, top_k, requires_grad=True)
        with Largest() as largest:
            combine(permute(x_TD, *plan), weight_TK, *plan).backward(torch.randn(tokens, width).bfloat16())
    # The output of permute itself, in bf16.
    assert largest.nbytes == 2 * tokens * top_k * width


@pytest.mark.gpu
def test_at_the_size_of_a_real_layer(gpu):
    tokens, top_k, width = 16384, 2, 1024
    with torch.device(gpu):
        plan = random_plan(tokens, 8, top_k)
        x_TD = torch.randn(tokens, width).bfloat16().requires_grad_()
        weight_TK = torch.rand(tokens, top_k, requires_grad=True)
        cotangent_TD = torch.randn(tokens, width).bfloat16()
        # The first run compiles.
        combine(permute(x_TD, *plan), weight_TK, *plan).backward(cotangent_TD)
        x_TD.grad = weight_TK.grad = None
        torch.cuda.set_sync_debug_mode("error")
        try:
            rows_ND = permute(x_TD, *plan)
            out_TD = combine(rows_ND, weight_TK, *plan)
            out_TD.backward(cotangent_TD)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(rows_ND, x_TD[plan.token_N])
        weight_T1 = weight_TK.double().sum(dim=1, keepdim=True)
        assert_within(out_TD, x_TD.double() * weight_T1, BF16)
        assert_within(x_TD.grad, cotangent_TD.double() * weight_T1, BF16)
        share_T = (x_TD.double() * cotangent_TD.double()).sum(dim=1)
        assert_within(weight_TK.grad, share_T[:, None].expand(tokens, top_k), COMPLEX)
