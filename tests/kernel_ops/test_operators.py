"""Our operators pass torch's own checks: schema, fake tensors, autograd, ahead-of-time tracing."""

from collections.abc import Callable

import pytest
import torch
from storyteller_kernels.expert_mlp import cpu, grouped
from storyteller_kernels.expert_mlp import operators as experts
from storyteller_kernels.permute import operators as moves
from storyteller_kernels.rms_norm import operators as norms
from storyteller_kernels.routing import operators as routing
from torch import Tensor

T, D, E, K, I = 6, 16, 4, 2, 8
COUNTS = [5, 0, 6, 1]


def rand(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def rows() -> tuple[Tensor, Tensor]:
    row_TK = torch.randperm(T * K, generator=torch.Generator().manual_seed(1)).view(T, K)
    return row_TK.flatten().argsort() // K, row_TK


def ends() -> Tensor:
    return torch.tensor(COUNTS).cumsum(0, dtype=torch.int32)


CALLS: dict[str, tuple[Callable[..., object], Callable[[], tuple[object, ...]]]] = {
    "route": (routing._route, lambda: (rand(T, D), rand(E, D), K, None)),
    "route with noise": (routing._route, lambda: (rand(T, D), rand(E, D), K, rand(T, E))),
    "route, gradient": (
        routing._product_gradient,
        lambda: (rand(T, E, grad=False), rand(T, D, grad=False), rand(E, D, grad=False), True, False),
    ),
    "permute": (moves._permute, lambda: (rand(T, D), *rows())),
    "permute, gradient": (moves._permute_gradient, lambda: (rand(T * K, D, grad=False), rows()[1])),
    "combine": (moves._combine, lambda: (rand(T * K, D), rand(T, K), *rows())),
    "combine, gradient": (
        moves._combine_gradient,
        lambda: (rand(T, D, grad=False), rand(T * K, D, grad=False), rand(T, K, grad=False), *rows()),
    ),
    "rms_norm": (norms._rms_norm, lambda: (rand(T, D), None, rand(D), 1e-5)),
    "add_rms_norm": (norms._rms_norm, lambda: (rand(T, D), rand(T, D), rand(D), 1e-5)),
    "swiglu experts": (
        experts._experts,
        lambda: (rand(T * K, D), rand(E, 2 * I, D), rand(E, D, I), ends(), None, None, False, True),
    ),
    "swiglu experts of tokens": (
        experts._experts,
        lambda: (rand(T, D), rand(E, 2 * I, D), rand(E, D, I), ends(), *rows(), False, True),
    ),
    "swiglu experts for inference": (
        experts._experts,
        lambda: (
            *(t.detach() for t in (rand(T * K, D), rand(E, 2 * I, D), rand(E, D, I))),
            ends(),
            *[None] * 2,
            False,
            False,
        ),
    ),
    "grouped product": (grouped._product, lambda: (rand(T * K, D), rand(E, I, D), ends(), False)),
    "grouped product, gradient": (
        grouped._weight_gradient,
        lambda: (rand(T * K, I, grad=False), rand(T * K, D, grad=False), ends(), False),
    ),
    "plain experts": (
        cpu._experts,
        lambda: (rand(T * K, D), rand(E, 2 * I, D), rand(E, D, I), None, None, torch.tensor(COUNTS), "swiglu"),
    ),
    "plain experts with biases": (
        cpu._experts,
        lambda: (rand(T * K, D), rand(E, I, D), rand(E, D, I), rand(E, I), rand(E, D), torch.tensor(COUNTS), "gelu"),
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_opcheck(triton_device, call):
    operator, arguments = CALLS[call]
    with torch.device(triton_device):
        given = tuple(one.to(triton_device) if isinstance(one, Tensor) else one for one in arguments())
        result = torch.library.opcheck(operator, given)
    assert set(result.values()) == {"SUCCESS"}
