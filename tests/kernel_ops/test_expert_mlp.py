"""expert_mlp against a row-by-row loop in fp64, on every implementation."""

import math

import pytest
import torch
from storyteller_kernels import activate, expert_mlp
from torch import Tensor
from torch.nn import functional as F

from tests.support.tolerances import BF16, EXACT, SIMPLE, assert_within

COUNTS = {
    "uneven": [3, 0, 5, 1],
    "ends empty": [0, 4, 3, 0],
    "one expert": [7],
    "one row": [0, 0, 1, 0],
    "flood": [0, 9, 0, 0, 0, 0, 0, 0],
    "64 experts": [(7 * e) % 4 for e in range(64)],
    "many tiles": [40, 0, 16, 33],
}
every_count = pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
every_activation = pytest.mark.parametrize("activation", ["swiglu", "gelu", "relu", "relu2"])
as_list_or_tensor = pytest.mark.parametrize("as_counts", [list, torch.tensor], ids=["list", "tensor"])
pytestmark = [
    pytest.mark.parametrize("implementation", ["reference", "cpu", "onednn", "triton"], indirect=True),
    pytest.mark.usefixtures("small_tiles"),
]
with_and_without_bias = pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])


@pytest.fixture
def small_tiles(implementation, monkeypatch):
    """Shrink the Triton kernels' tiles, so that small tensors have many of them, whole and partly filled."""
    if implementation == "triton":
        from storyteller_kernels.expert_mlp import kernel, swiglu

        small = kernel.Tile(rows=16, cols=32, depth=16, warps=4, stages=2)
        monkeypatch.setattr(kernel, "TILES", dict.fromkeys(kernel.TILES, small))
        monkeypatch.setattr(kernel, "SPLIT_BLOCKS", 1)
        monkeypatch.setattr(swiglu, "TILE", (2, 16))


def reference_activation(hidden_H: Tensor, activation: str) -> Tensor:
    if activation == "swiglu":
        half = len(hidden_H) // 2
        gate_I, up_I = hidden_H[:half], hidden_H[half:]
        return gate_I / (1 + torch.exp(-gate_I)) * up_I
    if activation == "gelu":
        inner_I = math.sqrt(2 / math.pi) * (hidden_H + 0.044715 * hidden_H**3)
        return 0.5 * hidden_H * (1 + torch.tanh(inner_I))
    return torch.where(hidden_H > 0, hidden_H, 0.0) ** (2 if activation == "relu2" else 1)


def reference(tensors: list[Tensor], counts: list[int], activation: str) -> Tensor:
    """Compute each row separately with its expert's weights."""
    x_ND, up_EHD, down_EDI, *biases = (tensor.double() for tensor in tensors)
    expert_N = [e for e, count in enumerate(counts) for _ in range(count)]
    rows = []
    for x_D, e in zip(x_ND, expert_N, strict=True):
        hidden_H = (up_EHD[e] * x_D).sum(dim=1)
        if biases:
            hidden_H = hidden_H + biases[0][e]
        out_D = (down_EDI[e] * reference_activation(hidden_H, activation)).sum(dim=1)
        rows.append(out_D + biases[1][e] if biases else out_D)
    return torch.stack(rows)


def inputs(counts: list[int], activation: str, bias: bool, width: int = 7, inner: int = 5) -> list[Tensor]:
    """Return rows, up, down and, with bias, the two biases."""
    torch.manual_seed(len(counts) + sum(counts))
    hidden = 2 * inner if activation == "swiglu" else inner
    shapes = [(sum(counts), width), (len(counts), hidden, width), (len(counts), width, inner)]
    if bias:
        shapes += [(len(counts), hidden), (len(counts), width)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def run(tensors: list[Tensor], counts: list[int] | Tensor, activation: str) -> Tensor:
    x_ND, up_EHD, down_EDI, *biases = tensors
    return expert_mlp(x_ND, counts, up_EHD, down_EDI, activation, *biases)


@every_count
@every_activation
@with_and_without_bias
def test_forward_and_gradients(poisoned_memory, counts, activation, bias):
    tensors = inputs(counts, activation, bias)
    actual_ND, expected_ND = run(tensors, counts, activation), reference(tensors, counts, activation)
    assert_within(actual_ND, expected_ND, SIMPLE)
    cotangent_ND = torch.randn_like(actual_ND)
    # Without allow_unused: a gradient that is None raises an error.
    grads = torch.autograd.grad(actual_ND, tensors, cotangent_ND)
    expected_grads = torch.autograd.grad(expected_ND, tensors, cotangent_ND.double())
    for grad, expected in zip(grads, expected_grads, strict=True):
        assert_within(grad, expected, SIMPLE)
    for e, count in enumerate(counts):
        if count == 0:
            assert all(not grad[e].any() for grad in grads[1:])


@as_list_or_tensor
@every_activation
@with_and_without_bias
def test_no_rows_at_all(poisoned_memory, as_counts, activation, bias):
    # This happens on a rank to whose experts no token is routed.
    tensors = inputs([0, 0, 0], activation, bias)
    out_ND = run(tensors, as_counts([0, 0, 0]), activation)
    assert out_ND.shape == (0, 7)
    out_ND.sum().backward()
    for tensor in tensors:
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@every_activation
def test_odd_and_tiny_widths(activation):
    for width, inner in [(1, 1), (1, 3), (33, 17), (50, 40)]:
        tensors = inputs([2, 0, 3], activation, bias=False, width=width, inner=inner)
        assert_within(run(tensors, [2, 0, 3], activation), reference(tensors, [2, 0, 3], activation), SIMPLE)


@as_list_or_tensor
def test_counts_may_be_a_list_or_a_tensor(as_counts):
    counts = COUNTS["uneven"]
    tensors = inputs(counts, "swiglu", bias=False)
    assert_within(run(tensors, as_counts(counts), "swiglu"), reference(tensors, counts, "swiglu"), SIMPLE)


@pytest.mark.parametrize(
    ("counts", "top_k"),
    [([3, 0, 5, 1], 1), ([40, 0, 16, 34], 2), ([0, 8, 0, 0], 4), (COUNTS["64 experts"], 4)],
    ids=["one choice", "two choices", "one expert", "64 experts"],
)
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_of_tokens(poisoned_memory, counts, top_k, activation):
    rows = sum(counts)
    tensors = inputs(counts, activation, bias=activation != "swiglu", width=20)
    row_TK = torch.randperm(rows).view(-1, top_k)
    token_N = row_TK.flatten().argsort() // top_k
    x_TD = torch.randn(rows // top_k, 20, requires_grad=True)
    arguments = [x_TD, *tensors[1:]]
    actual_ND = expert_mlp(
        x_TD, torch.tensor(counts), *tensors[1:3], activation, *tensors[3:], token_N=token_N, row_TK=row_TK
    )
    expected_ND = reference([x_TD[token_N], *tensors[1:]], counts, activation)
    assert_within(actual_ND, expected_ND, SIMPLE)
    cotangent_ND = torch.randn_like(actual_ND)
    grads = torch.autograd.grad(actual_ND, arguments, cotangent_ND)
    expected_grads = torch.autograd.grad(expected_ND, arguments, cotangent_ND.double())
    for grad, expected in zip(grads, expected_grads, strict=True):
        assert_within(grad, expected, SIMPLE)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(actual_ND, reference([x_TD[token_N.roll(top_k)], *tensors[1:]], counts, activation), SIMPLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    counts = COUNTS["many tiles"]
    tensors = [t.detach().mul(0.5).to(dtype).requires_grad_() for t in inputs(counts, "swiglu", False, 24, 16)]
    actual_ND, expected_ND = run(tensors, torch.tensor(counts), "swiglu"), reference(tensors, counts, "swiglu")
    assert actual_ND.dtype == dtype
    assert_within(actual_ND, expected_ND, BF16)
    cotangent_ND = torch.randn(actual_ND.shape).to(dtype)
    grads = torch.autograd.grad(actual_ND, tensors, cotangent_ND)
    for grad, expected in zip(grads, torch.autograd.grad(expected_ND, tensors, cotangent_ND.double()), strict=True):
        assert grad.dtype == dtype
        assert_within(grad, expected, BF16)


def test_autocast_sets_the_dtype():
    counts = COUNTS["uneven"]
    tensors = inputs(counts, "swiglu", bias=False)
    with torch.autocast(tensors[0].device.type, dtype=torch.bfloat16):
        out_ND = run(tensors, torch.tensor(counts), "swiglu")
    assert out_ND.dtype == torch.bfloat16
    out_ND.float().square().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)
    rounded = [tensor.detach().bfloat16() for tensor in tensors]
    assert_within(out_ND, run(rounded, torch.tensor(counts), "swiglu"), EXACT)


def test_only_the_gradients_that_are_asked_for():
    counts = COUNTS["uneven"]
    tensors = inputs(counts, "swiglu", bias=False)
    cotangent_ND = torch.randn(sum(counts), 7)
    every = torch.autograd.grad(run(tensors, counts, "swiglu"), tensors, cotangent_ND)
    for wanted in range(3):
        some = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(tensors)]
        run(some, counts, "swiglu").backward(cotangent_ND)
        assert [tensor.grad is not None for tensor in some] == [i == wanted for i in range(3)]
        assert_within(some[wanted].grad, every[wanted], EXACT)


def test_strides_do_not_matter():
    counts = COUNTS["uneven"]
    tensors = inputs(counts, "swiglu", bias=True)
    turned = [t.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for t in tensors]
    assert not turned[0].is_contiguous()
    out_ND = run(turned, counts, "swiglu")
    expected_ND = reference(tensors, counts, "swiglu")
    assert_within(out_ND, expected_ND, SIMPLE)
    out_ND.sum().backward()
    for tensor, wanted in zip(turned, torch.autograd.grad(expected_ND.sum(), tensors), strict=True):
        assert_within(tensor.grad, wanted, SIMPLE)


def test_the_gate_is_the_first_half():
    counts = COUNTS["uneven"]
    x_ND, up_EHD, down_EDI = inputs(counts, "swiglu", bias=False)
    swapped_EHD = up_EHD.roll(up_EHD.shape[1] // 2, dims=1)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(
            run([x_ND, swapped_EHD, down_EDI], counts, "swiglu"),
            reference([x_ND, up_EHD, down_EDI], counts, "swiglu"),
            SIMPLE,
        )


def test_gelu_is_the_tanh_form_and_not_the_exact_one():
    hidden = torch.linspace(-4, 4, 101)
    assert_within(activate(hidden, "gelu"), reference_activation(hidden.double(), "gelu"), SIMPLE)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(activate(hidden, "gelu"), F.gelu(hidden), SIMPLE)


def test_rows_of_the_wrong_expert_are_seen():
    tensors = inputs([3, 2], "relu", bias=False)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(run(tensors, [2, 3], "relu"), reference(tensors, [3, 2], "relu"), SIMPLE)


@every_activation
def test_twice_is_the_same_bits(activation):
    counts = COUNTS["64 experts"]
    tensors = inputs(counts, activation, bias=True)
    cotangent_ND = torch.randn(sum(counts), 7)
    runs = []
    for _ in range(2):
        out_ND = run(tensors, counts, activation)
        runs.append((out_ND, *torch.autograd.grad(out_ND, tensors, cotangent_ND)))
    for first, second in zip(*runs, strict=True):
        assert_within(first, second, EXACT)
