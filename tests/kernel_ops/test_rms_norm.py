"""rms_norm and add_rms_norm against a row-by-row loop in fp64, on every implementation."""

import pytest
import torch
from storyteller_kernels import rms_norm
from storyteller_kernels.rms_norm import MAX_WIDTH, add_rms_norm
from torch import Tensor

from tests.support.tolerances import BF16, EXACT, SIMPLE, assert_within

EPS = 1e-5
SHAPES = [(1, 7), (5, 3), (2, 3, 17), (13, 129), (1, 1, 64), (67, 32), (3, 1100), (150, 300)]
every_shape = pytest.mark.parametrize("shape", SHAPES)
pytestmark = pytest.mark.usefixtures("implementation")


def reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Apply the formula to each row, in fp64."""
    rows = []
    for row_D in x.double().reshape(-1, x.shape[-1]):
        mean_square = (row_D * row_D).sum() / x.shape[-1]
        rows.append(row_D / (mean_square + eps).sqrt() * weight_D.double())
    return torch.stack(rows).view(x.shape)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and a cotangent; the first two require gradients."""
    torch.manual_seed(sum(shape))
    x = torch.randn(shape).mul(3).to(dtype).requires_grad_()
    return x, torch.randn(shape[-1], requires_grad=True), torch.randn(shape).to(dtype)


@every_shape
def test_forward_and_gradients(poisoned_memory, shape):
    x, weight_D, cotangent = inputs(shape)
    out, expected = rms_norm(x, weight_D, EPS), reference(x, weight_D, EPS)
    assert_within(out, expected, SIMPLE)
    grads = torch.autograd.grad(out, (x, weight_D), cotangent)
    expected_grads = torch.autograd.grad(expected, (x, weight_D), cotangent.double())
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert_within(grad, wanted, SIMPLE)


@every_shape
@pytest.mark.parametrize("used", ["both", "normed", "sum"])
def test_the_sum_normalized_and_the_sum(poisoned_memory, shape, used):
    x, weight_D, cotangent = inputs(shape)
    residual, sum_cotangent = torch.randn(shape, requires_grad=True), torch.randn(shape)
    keep = {"both": slice(2), "normed": slice(1), "sum": slice(1, 2)}[used]
    out = add_rms_norm(x, residual, weight_D, EPS)
    expected_sum = x.double() + residual.double()
    expected = reference(expected_sum, weight_D, EPS), expected_sum
    for one, wanted in zip(out, expected, strict=True):
        assert_within(one, wanted, SIMPLE)
    cotangents = [cotangent, sum_cotangent][keep]
    arguments = (x, residual) if used == "sum" else (x, residual, weight_D)
    grads = torch.autograd.grad(out[keep], arguments, cotangents)
    expected_grads = torch.autograd.grad(expected[keep], arguments, [c.double() for c in cotangents])
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert_within(grad, wanted, SIMPLE)


def test_one_feature():
    x_TD, weight_D, _ = inputs((3, 1))
    assert_within(rms_norm(x_TD, weight_D, EPS), reference(x_TD, weight_D, EPS), SIMPLE)
    assert_within(rms_norm(x_TD, weight_D, 1e-12), x_TD.sign() * weight_D, SIMPLE)


def test_no_rows():
    x_TD, weight_D, cotangent_TD = inputs((0, 5))
    out_TD = rms_norm(x_TD, weight_D, EPS)
    assert out_TD.shape == (0, 5)
    grad_TD, grad_D = torch.autograd.grad(out_TD, (x_TD, weight_D), cotangent_TD)
    assert grad_TD.shape == (0, 5)
    assert torch.equal(grad_D, torch.zeros(5))


@pytest.mark.parametrize("width", [MAX_WIDTH, MAX_WIDTH + 1])
def test_the_widest_row_and_one_wider(width):
    x_TD, weight_D, cotangent_TD = inputs((2, width))
    out_TD, expected_TD = rms_norm(x_TD, weight_D, EPS), reference(x_TD, weight_D, EPS)
    assert_within(out_TD, expected_TD, SIMPLE)
    grads = torch.autograd.grad(out_TD, (x_TD, weight_D), cotangent_TD)
    for grad, wanted in zip(
        grads, torch.autograd.grad(expected_TD, (x_TD, weight_D), cotangent_TD.double()), strict=True
    ):
        assert_within(grad, wanted, SIMPLE)


def test_strides_do_not_matter():
    x_TD, weight_D, cotangent_TD = inputs((6, 10))
    turned_TD = x_TD.detach().t().contiguous().t().requires_grad_()
    spread_D = torch.stack([weight_D.detach()] * 2, dim=1)[:, 0]
    assert not turned_TD.is_contiguous()
    assert not spread_D.is_contiguous()
    out_TD = rms_norm(turned_TD, spread_D, EPS)
    assert_within(out_TD, reference(x_TD, weight_D, EPS), SIMPLE)
    # One cotangent is a broadcast scalar, as sum() makes it; the other is transposed.
    for grad_TD in (torch.ones(()).expand(6, 10), cotangent_TD.t().contiguous().t()):
        (actual,) = torch.autograd.grad(out_TD, turned_TD, grad_TD, retain_graph=True)
        (expected,) = torch.autograd.grad(reference(x_TD, weight_D, EPS), x_TD, grad_TD.double())
        assert_within(actual, expected, SIMPLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_at_the_end(dtype):
    x_TD, weight_D, cotangent_TD = inputs((9, 33), dtype)
    out_TD = rms_norm(x_TD, weight_D, EPS)
    expected_TD = reference(x_TD, weight_D, EPS)
    assert out_TD.dtype == dtype
    # Entry by entry: normalizing, rounding the gain and their product are three roundings of 2^-9 each.
    assert ((out_TD.double() - expected_TD).abs() <= BF16 * expected_TD.abs()).all()
    out_TD.backward(cotangent_TD)
    expected_x, expected_w = torch.autograd.grad(expected_TD, (x_TD, weight_D), cotangent_TD.double())
    assert (x_TD.grad.dtype, weight_D.grad.dtype) == (dtype, torch.float32)
    assert_within(x_TD.grad, expected_x, BF16)
    assert_within(weight_D.grad, expected_w, BF16)


@pytest.mark.parametrize("residual_dtype", [torch.bfloat16, torch.float32])
def test_the_stream_may_be_wider_than_the_answer(residual_dtype):
    x_TD, weight_D, _ = inputs((9, 33), torch.bfloat16)
    residual_TD = torch.randn(9, 33).to(residual_dtype).requires_grad_()
    out_TD, sum_TD = add_rms_norm(x_TD, residual_TD, weight_D, EPS)
    assert (out_TD.dtype, sum_TD.dtype) == (residual_dtype, residual_dtype)
    assert torch.equal(sum_TD, x_TD + residual_TD)
    expected_sum_TD = x_TD.double() + residual_TD.double()
    assert_within(out_TD, reference(expected_sum_TD, weight_D, EPS), BF16)
    cotangents = torch.randn(9, 33).to(residual_dtype), torch.randn(9, 33).to(residual_dtype)
    grads = torch.autograd.grad((out_TD, sum_TD), (x_TD, residual_TD, weight_D), cotangents)
    assert [grad.dtype for grad in grads] == [torch.bfloat16, residual_dtype, torch.float32]
    wanted = torch.autograd.grad(
        (reference(expected_sum_TD, weight_D, EPS), expected_sum_TD),
        (x_TD, residual_TD, weight_D),
        [cotangent.double() for cotangent in cotangents],
    )
    for grad, expected in zip(grads, wanted, strict=True):
        assert_within(grad, expected, BF16)


def test_bf16_statistics_are_fp32():
    # In bf16, a sum of squares of 1 stays at 256, so 1000 of them would give a mean of 0.256.
    x_TD = torch.ones(1, 1000, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x_TD, torch.ones(1000), EPS), x_TD)


def test_eps_is_inside_the_root():
    x_TD, weight_D, _ = inputs((4, 8))
    small_TD = x_TD.detach() * 1e-3
    out_TD = rms_norm(small_TD, weight_D, EPS)
    assert_within(out_TD, reference(small_TD, weight_D, EPS), SIMPLE)
    outside_TD = small_TD / (small_TD.square().mean(-1, keepdim=True).sqrt() + EPS) * weight_D
    with pytest.raises(AssertionError, match="difference"):
        assert_within(out_TD, outside_TD, SIMPLE)


def test_a_zero_row_gives_zero_and_a_finite_gradient():
    x_TD = torch.zeros(2, 5, requires_grad=True)
    out_TD = rms_norm(x_TD, torch.ones(5), EPS)
    assert torch.equal(out_TD, torch.zeros(2, 5))
    out_TD.sum().backward()
    assert_within(x_TD.grad, torch.full((2, 5), EPS**-0.5), SIMPLE)


def test_a_row_of_nan_leaves_the_others_alone():
    x_TD, weight_D, _ = inputs((40, 12))
    spoilt_TD = x_TD.detach().clone()
    spoilt_TD[3] = float("nan")
    out_TD, plain_TD = rms_norm(spoilt_TD, weight_D, EPS), rms_norm(x_TD, weight_D, EPS)
    assert out_TD[3].isnan().all()
    others = torch.arange(40) != 3
    assert torch.equal(out_TD[others], plain_TD[others])


@pytest.mark.parametrize("shape", [(31, 65), (150, 300)])
def test_twice_is_the_same_bits(shape):
    x_TD, weight_D, cotangent_TD = inputs(shape)
    residual_TD = torch.randn(shape)
    runs = []
    for _ in range(2):
        out_TD = rms_norm(x_TD, weight_D, EPS)
        normed_TD, sum_TD = add_rms_norm(x_TD, residual_TD, weight_D, EPS)
        grads = torch.autograd.grad(out_TD, (x_TD, weight_D), cotangent_TD)
        grads += torch.autograd.grad((normed_TD, sum_TD), (x_TD, weight_D), (cotangent_TD, cotangent_TD))
        runs.append((out_TD, normed_TD, sum_TD, *grads))
    for first, second in zip(*runs, strict=True):
        assert_within(first, second, EXACT)
