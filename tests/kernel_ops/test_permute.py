"""permute and combine against loops over tokens and choices, on every implementation."""

from typing import NamedTuple

import pytest
import torch
from storyteller_kernels import combine, permute
from torch import Tensor

from tests.support.tolerances import BF16, EXACT, SIMPLE, assert_within

# The last is more than one tile of rows and of columns.
CASES = [(1, 4, 1, 3), (1, 4, 4, 1), (7, 4, 2, 5), (13, 16, 4, 17), (33, 64, 2, 8), (10, 64, 1, 7), (5, 4, 2, 2050)]
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
pytestmark = pytest.mark.usefixtures("implementation")
every_case = pytest.mark.parametrize(("tokens", "experts", "top_k", "width"), CASES)


class Plan(NamedTuple):
    token_N: Tensor
    row_TK: Tensor


def plan_of(expert_TK: list[list[int]]) -> Plan:
    """Put the rows in (expert, token) order, by sorting in Python."""
    pairs = sorted((e, t, k) for t, choices in enumerate(expert_TK) for k, e in enumerate(choices))
    row_TK = torch.empty(len(expert_TK), len(expert_TK[0]), dtype=torch.int64)
    for row, (_, t, k) in enumerate(pairs):
        row_TK[t, k] = row
    return Plan(torch.tensor([t for _, t, _ in pairs]), row_TK)


def random_plan(tokens: int, experts: int, top_k: int) -> Plan:
    torch.manual_seed(100 * tokens + 10 * experts + top_k)
    return plan_of([torch.randperm(experts)[:top_k].tolist() for _ in range(tokens)])


def combined(y_ND: Tensor, weight_TK: Tensor, plan: Plan) -> Tensor:
    """Reference for combine: one token at a time, in fp64."""
    return torch.stack([
        sum(weight_TK[t, k].double() * y_ND[plan.row_TK[t, k]].double() for k in range(plan.row_TK.shape[1]))
        for t in range(plan.row_TK.shape[0])
    ])  # fmt: skip


@every_case
@every_dtype
def test_permute_moves_exactly(poisoned_memory, tokens, experts, top_k, width, dtype):
    plan = random_plan(tokens, experts, top_k)
    x_TD = torch.randn(tokens, width).to(dtype)
    rows_ND = permute(x_TD, *plan)
    assert rows_ND.dtype == dtype
    assert rows_ND.shape == (tokens * top_k, width)
    for t in range(tokens):
        for row in plan.row_TK[t]:
            assert torch.equal(rows_ND[row], x_TD[t])


@every_case
def test_permute_gradient_adds_the_rows_of_a_token(poisoned_memory, tokens, experts, top_k, width):
    plan = random_plan(tokens, experts, top_k)
    x_TD = torch.randn(tokens, width, requires_grad=True)
    # Whole numbers add without rounding, so this sum is exact too.
    cotangent_ND = torch.randint(-99, 99, (tokens * top_k, width)).float()
    permute(x_TD, *plan).backward(cotangent_ND)
    expected_TD = torch.zeros(tokens, width)
    for row, t in enumerate(plan.token_N):
        expected_TD[t] += cotangent_ND[row]
    assert_within(x_TD.grad, expected_TD, EXACT)


@every_case
def test_combine_forward_and_gradients(poisoned_memory, tokens, experts, top_k, width):
    plan = random_plan(tokens, experts, top_k)
    y_ND = torch.randn(tokens * top_k, width, requires_grad=True)
    weight_TK = torch.rand(tokens, top_k, requires_grad=True)
    cotangent_TD = torch.randn(tokens, width)
    actual_TD, expected_TD = combine(y_ND, weight_TK, *plan), combined(y_ND, weight_TK, plan)
    assert_within(actual_TD, expected_TD, SIMPLE)
    grads = torch.autograd.grad(actual_TD, (y_ND, weight_TK), cotangent_TD)
    expected_grads = torch.autograd.grad(expected_TD, (y_ND, weight_TK), cotangent_TD.double())
    for grad, expected in zip(grads, expected_grads, strict=True):
        assert_within(grad, expected, SIMPLE)


def test_all_tokens_to_one_expert():
    plan = plan_of([[5]] * 9)
    x_TD = torch.randn(9, 4)
    assert torch.equal(permute(x_TD, *plan), x_TD)
    assert torch.equal(combine(x_TD, torch.ones(9, 1), *plan), x_TD)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_there_and_back_with_weights_that_sum_to_one_changes_nothing(top_k):
    plan = random_plan(21, 8, top_k)
    x_TD = torch.randn(21, 6)
    # Powers of two, so no product or sum is rounded.
    weight_TK = torch.full((21, top_k), 1 / top_k)
    assert torch.equal(combine(permute(x_TD, *plan), weight_TK, *plan), x_TD)


def test_swapped_weights_are_seen():
    plan = random_plan(8, 4, 2)
    y_ND, weight_TK = torch.randn(16, 3), torch.rand(8, 2)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(combine(y_ND, weight_TK.flip(1), *plan), combined(y_ND, weight_TK, plan), SIMPLE)


def test_strides_do_not_matter():
    plan = random_plan(10, 8, 2)
    x_TD, weight_TK = torch.randn(10, 6), torch.rand(10, 2)
    turned_TD = x_TD.t().contiguous().t().requires_grad_()
    turned_TK = weight_TK.t().contiguous().t().requires_grad_()
    rows_ND = permute(turned_TD, *plan)
    assert torch.equal(rows_ND, permute(x_TD, *plan))
    out_TD = combine(rows_ND.t().contiguous().t(), turned_TK, *plan)
    assert torch.equal(out_TD, combine(rows_ND, weight_TK, *plan))
    # sum() sends back a broadcast scalar, which has strides of zero.
    out_TD.sum().backward()
    expected_TD = weight_TK.sum(dim=1, keepdim=True).expand(10, 6)
    assert_within(turned_TD.grad, expected_TD, SIMPLE)
    assert_within(turned_TK.grad, x_TD.sum(dim=1, keepdim=True).expand(10, 2), SIMPLE)


@every_dtype
def test_no_tokens(dtype):
    plan = Plan(torch.empty(0, dtype=torch.int64), torch.empty(0, 2, dtype=torch.int64))
    x_TD = torch.randn(0, 5).to(dtype).requires_grad_()
    weight_TK = torch.randn(0, 2, requires_grad=True)
    out_TD = combine(permute(x_TD, *plan), weight_TK, *plan)
    assert out_TD.shape == (0, 5)
    out_TD.sum().backward()
    assert (x_TD.grad.shape, weight_TK.grad.shape) == ((0, 5), (0, 2))


@every_dtype
def test_permute_gradient_in_every_dtype(dtype):
    plan = random_plan(12, 8, 4)
    x_TD = torch.randn(12, 6).to(dtype).requires_grad_()
    # Sums of four such numbers are exact in every dtype.
    cotangent_ND = torch.randint(-8, 8, (48, 6)).to(dtype)
    permute(x_TD, *plan).backward(cotangent_ND)
    assert x_TD.grad.dtype == dtype
    expected_TD = torch.stack([cotangent_ND[plan.row_TK[t]].double().sum(dim=0) for t in range(12)])
    assert_within(x_TD.grad, expected_TD, EXACT)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_combine_in_half_precision(top_k, dtype):
    plan = random_plan(15, 8, top_k)
    y_ND = torch.randn(15 * top_k, 9).to(dtype).requires_grad_()
    weight_TK = torch.rand(15, top_k)
    weight_TK = (weight_TK / weight_TK.sum(dim=1, keepdim=True)).requires_grad_()
    cotangent_TD = torch.randn(15, 9).to(dtype)
    out_TD, expected_TD = combine(y_ND, weight_TK, *plan), combined(y_ND, weight_TK, plan)
    assert out_TD.dtype == dtype
    assert_within(out_TD, expected_TD, BF16)
    out_TD.backward(cotangent_TD)
    expected_y, expected_w = torch.autograd.grad(expected_TD, (y_ND, weight_TK), cotangent_TD.double())
    assert (y_ND.grad.dtype, weight_TK.grad.dtype) == (dtype, torch.float32)
    assert_within(y_ND.grad, expected_y, BF16)
    # The router's gradient is a sum over features in fp32, for every dtype of the features.
    assert_within(weight_TK.grad, expected_w, SIMPLE)


def test_twice_is_the_same_bits():
    plan = random_plan(33, 16, 4)
    x_TD = torch.randn(33, 5, requires_grad=True)
    weight_TK = torch.rand(33, 4, requires_grad=True)
    cotangent_TD = torch.randn(33, 5)
    runs = []
    for _ in range(2):
        out_TD = combine(permute(x_TD, *plan), weight_TK, *plan)
        runs.append((out_TD, *torch.autograd.grad(out_TD, (x_TD, weight_TK), cotangent_TD)))
    for first, second in zip(*runs, strict=True):
        assert_within(first, second, EXACT)
