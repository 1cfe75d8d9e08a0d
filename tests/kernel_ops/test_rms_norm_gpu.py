"""rms_norm on a GPU, at sizes that the interpreter cannot reach."""

import pytest
import torch
from storyteller_kernels import rms_norm
from storyteller_kernels.rms_norm import add_rms_norm
from torch import Tensor

from tests.support.tolerances import BF16, EXACT, SIMPLE, assert_within

EPS = 1e-5
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
every_size = pytest.mark.parametrize(
    ("tokens", "width"), [(65536, 512), (16384, 1536), (8191, 4096), (4096, 8192), (333, 1000)]
)


def reference(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    """Apply the formula, in fp64."""
    x_TD = x_TD.double()
    return x_TD / ((x_TD * x_TD).mean(dim=-1, keepdim=True) + EPS).sqrt() * weight_D.double()


def inputs(tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, residual and weight, which require gradients, and a cotangent."""
    torch.manual_seed(tokens)
    x_TD, residual_TD, cotangent_TD = (torch.randn(tokens, width, device="cuda").to(dtype) for _ in range(3))
    weight_D = torch.randn(width, device="cuda", requires_grad=True)
    return x_TD.requires_grad_(), residual_TD.requires_grad_(), weight_D, cotangent_TD


@every_size
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_forward_and_gradients(tokens, width, dtype):
    tolerance = SIMPLE if dtype == torch.float32 else BF16
    x_TD, _, weight_D, cotangent_TD = inputs(tokens, width, dtype)
    out_TD, expected_TD = rms_norm(x_TD, weight_D, EPS), reference(x_TD, weight_D)
    assert_within(out_TD, expected_TD, tolerance)
    grads = torch.autograd.grad(out_TD, (x_TD, weight_D), cotangent_TD)
    expected_grads = torch.autograd.grad(expected_TD, (x_TD, weight_D), cotangent_TD.double())
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert_within(grad, wanted, tolerance)


@every_size
def test_the_fused_addition_is_the_addition_bit_for_bit(tokens, width):
    x_TD, residual_TD, weight_D, cotangent_TD = inputs(tokens, width, torch.bfloat16)
    normed_TD, sum_TD = add_rms_norm(x_TD, residual_TD, weight_D, EPS)
    assert torch.equal(sum_TD, x_TD + residual_TD)
    assert torch.equal(normed_TD, rms_norm(sum_TD, weight_D, EPS))
    grads = torch.autograd.grad((normed_TD, sum_TD), (x_TD, residual_TD), (cotangent_TD, cotangent_TD))
    expected_sum_TD = x_TD.double() + residual_TD.double()
    expected = (reference(expected_sum_TD, weight_D), expected_sum_TD)
    wanted_grads = torch.autograd.grad(expected, (x_TD, residual_TD), (cotangent_TD.double(), cotangent_TD.double()))
    for grad, wanted in zip(grads, wanted_grads, strict=True):
        assert_within(grad, wanted, BF16)


@every_size
def test_twice_is_the_same_bits(tokens, width):
    x_TD, _, weight_D, cotangent_TD = inputs(tokens, width, torch.bfloat16)
    runs = []
    for _ in range(2):
        out_TD = rms_norm(x_TD, weight_D, EPS)
        runs.append((out_TD, *torch.autograd.grad(out_TD, (x_TD, weight_D), cotangent_TD)))
    for first, second in zip(*runs, strict=True):
        assert_within(first, second, EXACT)


def test_more_values_than_32_bits_can_count():
    tokens, width = 2**31 // 8192 + 64, 8192
    if torch.cuda.mem_get_info()[0] < 8 * 2 * tokens * width:
        pytest.skip("needs 35 GB of device memory")
    x_TD = torch.zeros(tokens, width, dtype=torch.bfloat16, device="cuda")
    torch.manual_seed(0)
    x_TD[-64:] = torch.randn(64, width, device="cuda").bfloat16()
    x_TD.requires_grad_()
    weight_D = torch.randn(width, device="cuda")
    out_TD = rms_norm(x_TD, weight_D, EPS)
    (grad_TD,) = torch.autograd.grad(out_TD, x_TD, torch.ones((), dtype=x_TD.dtype, device="cuda").expand_as(out_TD))
    last_TD = x_TD.detach()[-64:].requires_grad_()
    expected_TD = reference(last_TD, weight_D)
    assert_within(out_TD[-64:], expected_TD, BF16)
    assert_within(grad_TD[-64:], torch.autograd.grad(expected_TD.sum(), last_TD)[0], BF16)


def test_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x_TD, _, weight_D, _ = inputs(7, 64, torch.float32)
    there = rms_norm(x_TD.to("cuda:1"), weight_D.to("cuda:1"), EPS)
    assert torch.equal(there.cpu(), rms_norm(x_TD, weight_D, EPS).cpu())
