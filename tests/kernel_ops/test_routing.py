"""route against a token-by-token loop in fp64, on every implementation."""

from typing import NamedTuple

import pytest
import torch
from storyteller_kernels import Routing, route
from storyteller_kernels.routing import MAX_EXPERTS
from torch import Tensor

from tests.support.tolerances import BF16, EXACT, SIMPLE, assert_within

D = 12
CASES = [(1, 4, 1), (1, 8, 2), (7, 4, 4), (13, 8, 2), (33, 16, 4), (29, 64, 1), (17, 64, 2), (5, 1, 1), (150, 9, 3)]
every_case = pytest.mark.parametrize(("tokens", "experts", "top_k"), CASES)
pytestmark = pytest.mark.usefixtures("implementation")


class Expected(NamedTuple):
    weight_TK: Tensor
    expert_TK: Tensor
    prob_TE: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    entropy_sum: Tensor


def reference(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None = None) -> Expected:
    """Route each token separately: softmax, sort by (probability, lower index), renormalize."""
    weights, experts, probs, squares, entropies = [], [], [], [], []
    weight_ED = weight_ED.double()
    for t, x_D in enumerate(x_TD.double()):
        logit_E = (x_D * weight_ED).sum(dim=1)
        if noise_TE is not None:
            logit_E = logit_E + noise_TE[t].double()
        z = logit_E.exp().sum()
        prob_E = logit_E.exp() / z
        best = [e for _, e in sorted((-prob, e) for e, prob in enumerate(prob_E.tolist()))[:top_k]]
        kept_K = torch.stack([prob_E[e] for e in best])
        weights.append(kept_K / kept_K.sum())
        experts.append(torch.tensor(best))
        probs.append(prob_E)
        squares.append(z.log() ** 2)
        entropies.append(-(prob_E * prob_E.log()).sum())
    return Expected(
        torch.stack(weights), torch.stack(experts), torch.stack(probs), sum(probs), sum(squares), sum(entropies)
    )


def inputs(tokens: int, experts: int, width: int = D) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1000 * tokens + experts)
    scale = 2 * width**-0.5
    return torch.randn(tokens, width, requires_grad=True), torch.randn(experts, width).mul(scale).requires_grad_()


def assert_rows_agree(routing: Routing) -> None:
    """Assert that the rows are the (expert, token) pairs in order, in all fields."""
    pairs = sorted((e, t, k) for t, choices in enumerate(routing.expert_TK.tolist()) for k, e in enumerate(choices))
    assert routing.token_N.tolist() == [t for _, t, _ in pairs]
    row_TK = routing.row_TK.tolist()
    assert [row_TK[t][k] for _, t, k in pairs] == list(range(len(pairs)))
    counts = [sum(e == expert for e, _, _ in pairs) for expert in range(len(routing.count_E))]
    assert routing.count_E.tolist() == counts


@every_case
def test_every_field(poisoned_memory, tokens, experts, top_k):
    x_TD, weight_ED = inputs(tokens, experts)
    routing, expected = route(x_TD, weight_ED, top_k), reference(x_TD, weight_ED, top_k)
    assert torch.equal(routing.expert_TK, expected.expert_TK)
    for name in ("weight_TK", "prob_TE", "prob_sum_E", "z_sum", "entropy_sum"):
        assert_within(getattr(routing, name), getattr(expected, name), SIMPLE)
        assert getattr(routing, name).dtype == torch.float32
    assert_within(routing.weight_TK.sum(dim=1), torch.ones(tokens), SIMPLE)
    ids = (routing.expert_TK, routing.count_E, routing.row_TK, routing.token_N)
    assert all(each.dtype == torch.int64 for each in ids)
    assert_rows_agree(routing)


OUTPUTS = ["weight_TK", "prob_TE", "prob_sum_E", "z_sum"]


def gradients(
    result: Routing | Expected, names: list[str], cotangents: list[Tensor], of: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    outputs = [getattr(result, name) for name in names]
    grads = [cotangent.to(output.dtype) for cotangent, output in zip(cotangents, outputs, strict=True)]
    return torch.autograd.grad(outputs, of, grads)


@every_case
def test_gradients(poisoned_memory, tokens, experts, top_k):
    of = inputs(tokens, experts)
    routing, expected = route(*of, top_k), reference(*of, top_k)
    assert not routing.entropy_sum.requires_grad
    cotangents = [torch.randn(getattr(routing, name).shape) for name in OUTPUTS]
    wanted = gradients(expected, OUTPUTS, cotangents, of)
    for actual, wanted_one in zip(gradients(routing, OUTPUTS, cotangents, of), wanted, strict=True):
        assert_within(actual, wanted_one, SIMPLE)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)], ids=["both", "x", "weight"])
def test_gradients_of_one_output(name, needed):
    x_TD, weight_ED = (tensor.detach().requires_grad_(need) for tensor, need in zip(inputs(21, 6), needed, strict=True))
    of = tuple(tensor for tensor in (x_TD, weight_ED) if tensor.requires_grad)
    routing, expected = route(x_TD, weight_ED, 2), reference(x_TD, weight_ED, 2)
    # The same for every token, with a stride of 0, as autograd makes it.
    shape = getattr(routing, name).shape
    cotangent = torch.randn(shape[-1:]).expand(shape)
    wanted = gradients(expected, [name], [cotangent], of)
    for actual, wanted_one in zip(gradients(routing, [name], [cotangent], of), wanted, strict=True):
        assert_within(actual, wanted_one, SIMPLE)


def test_noise_is_added_to_the_logits_and_has_a_gradient():
    x_TD, weight_ED = inputs(9, 8)
    noise_TE = torch.randn(9, 8, requires_grad=True)
    routing, expected = route(x_TD, weight_ED, 2, noise_TE), reference(x_TD, weight_ED, 2, noise_TE)
    assert torch.equal(routing.expert_TK, expected.expert_TK)
    assert not torch.equal(routing.expert_TK, route(x_TD, weight_ED, 2).expert_TK)
    cotangent_TK = torch.randn(9, 2)
    (actual,) = torch.autograd.grad(routing.weight_TK, noise_TE, cotangent_TK)
    (wanted,) = torch.autograd.grad(expected.weight_TK, noise_TE, cotangent_TK.double())
    assert_within(actual, wanted, SIMPLE)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("experts", [4, 9, 64])
def test_ties_go_to_the_lower_expert(experts, top_k):
    routing = route(torch.randn(11, D), torch.zeros(experts, D), top_k)
    assert routing.expert_TK.tolist() == [list(range(top_k))] * 11
    assert torch.equal(routing.weight_TK, torch.full((11, top_k), 1 / top_k))
    assert_rows_agree(routing)


def test_a_tie_among_the_best_only():
    # Whole numbers make the logits exact: experts 2, 5 and 6 tie above 0, 1, 3 and 4.
    weight_ED = torch.zeros(7, D)
    weight_ED[[2, 5, 6], 0] = 3.0
    x_TD = torch.zeros(2, D)
    x_TD[:, 0] = torch.tensor([1.0, -1.0])
    assert route(x_TD, weight_ED, 4).expert_TK.tolist() == [[2, 5, 6, 0], [0, 1, 3, 4]]


@pytest.mark.parametrize("flooded", [0, 3, 7])
def test_all_tokens_to_one_expert(flooded):
    x_TD = torch.rand(19, D) + 0.1
    weight_ED = torch.zeros(8, D)
    weight_ED[flooded] = 10.0
    routing = route(x_TD, weight_ED, 1)
    assert routing.count_E.tolist() == [19 if e == flooded else 0 for e in range(8)]
    assert routing.token_N.tolist() == list(range(19))


def test_one_choice_has_weight_one_and_no_gradient():
    x_TD, weight_ED = inputs(6, 8)
    routing = route(x_TD, weight_ED, 1)
    assert torch.equal(routing.weight_TK, torch.ones(6, 1))
    grads = torch.autograd.grad(routing.weight_TK, (x_TD, weight_ED), torch.randn(6, 1))
    assert all(grad.abs().max() < SIMPLE for grad in grads)


def test_large_logits_stay_finite():
    x_TD = torch.full((3, D), 30.0, requires_grad=True)
    routing = route(x_TD, torch.randn(8, D), 2)
    total = routing.weight_TK.square().sum() + routing.prob_sum_E.square().sum() + routing.z_sum
    total.backward()
    for value in (routing.weight_TK, routing.z_sum, routing.entropy_sum, x_TD.grad):
        assert torch.isfinite(value).all()


def test_strides_do_not_matter():
    x_TD, weight_ED = inputs(10, 8)
    plain = route(x_TD, weight_ED, 2)
    turned = route(x_TD.t().contiguous().t(), weight_ED.t().contiguous().t(), 2)
    assert torch.equal(turned.expert_TK, plain.expert_TK)
    assert_within(turned.weight_TK, plain.weight_TK, SIMPLE)


@pytest.mark.parametrize("width", [1, 100, 300])
def test_any_width(width):
    of = inputs(150, 8, width)
    routing, expected = route(*of, 2), reference(*of, 2)
    assert torch.equal(routing.expert_TK, expected.expert_TK)
    cotangents = [torch.randn(getattr(routing, name).shape) for name in OUTPUTS]
    wanted = gradients(expected, OUTPUTS, cotangents, of)
    for actual, wanted_one in zip(gradients(routing, OUTPUTS, cotangents, of), wanted, strict=True):
        assert_within(actual, wanted_one, SIMPLE)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_routed_in_fp32(dtype, weight_dtype):
    x_TD, weight_ED = (tensor.detach() for tensor in inputs(35, 8, 70))
    x_TD, weight_ED = x_TD.to(dtype).requires_grad_(), weight_ED.to(weight_dtype).requires_grad_()
    routing, expected = route(x_TD, weight_ED, 2), reference(x_TD, weight_ED, 2)
    assert torch.equal(routing.expert_TK, expected.expert_TK)
    for name in (*OUTPUTS, "entropy_sum"):
        assert_within(getattr(routing, name), getattr(expected, name), SIMPLE)
        assert getattr(routing, name).dtype == torch.float32
    cotangents = [torch.randn(getattr(routing, name).shape) for name in OUTPUTS]
    dx_TD, dweight_ED = gradients(routing, OUTPUTS, cotangents, (x_TD, weight_ED))
    wanted_dx_TD, wanted_dweight_ED = gradients(expected, OUTPUTS, cotangents, (x_TD, weight_ED))
    assert (dx_TD.dtype, dweight_ED.dtype) == (dtype, weight_dtype)
    assert_within(dx_TD, wanted_dx_TD, BF16)
    assert_within(dweight_ED, wanted_dweight_ED, SIMPLE if weight_dtype == torch.float32 else BF16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_last_bits_of_the_weight_decide(dtype):
    # 256.75 + e 2^-15 needs all 24 bits of fp32, of which bf16 has 8.
    weight_ED = 256.75 + torch.arange(8.0)[:, None] * 2.0**-15
    routing = route(torch.ones(3, 1, dtype=dtype), weight_ED, 8)
    assert routing.expert_TK.tolist() == [[7, 6, 5, 4, 3, 2, 1, 0]] * 3


def test_fp32_whatever_the_precision_around_it(implementation):
    x_TD, weight_ED = inputs(40, 16)
    low_TD = x_TD.detach().bfloat16()
    plain = route(low_TD.float(), weight_ED, 2)
    with torch.autocast(low_TD.device.type, dtype=torch.bfloat16):
        inside = route(low_TD, weight_ED, 2)
    for first, second in zip(inside, plain, strict=True):
        # The kernel uses bf16 products instead of fp32 ones: exact as well, but added in a different order.
        floats_differ = implementation == "triton" and first.is_floating_point()
        assert_within(first, second, SIMPLE if floats_differ else EXACT)
    # Control: rounding the weight to bf16 would be noticed.
    rounded = route(low_TD.float(), weight_ED.bfloat16().float(), 2)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(rounded.z_sum, plain.z_sum, SIMPLE)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # from numpy, under the interpreter
def test_a_token_of_nan_goes_somewhere_and_leaves_the_others_alone():
    x_TD, weight_ED = (tensor.detach() for tensor in inputs(30, 8))
    plain = route(x_TD, weight_ED, 2)
    x_TD[4] = float("nan")
    spoilt = route(x_TD, weight_ED, 2)
    assert spoilt.expert_TK[4].tolist() == [0, 1]
    assert spoilt.weight_TK[4].isnan().all()
    assert spoilt.z_sum.isnan()
    assert_rows_agree(spoilt)
    others = torch.arange(30) != 4
    assert torch.equal(spoilt.expert_TK[others], plain.expert_TK[others])
    assert torch.equal(spoilt.weight_TK[others], plain.weight_TK[others])


def test_no_tokens():
    routing = route(torch.empty(0, D), torch.randn(4, D), 2)
    assert routing.count_E.tolist() == [0] * 4
    assert routing.token_N.shape == (0,)
    assert routing.expert_TK.shape == (0, 2)


@pytest.mark.parametrize("experts", [MAX_EXPERTS, MAX_EXPERTS + 1])
def test_the_most_experts_and_one_more(experts):
    x_TD, weight_ED = inputs(18, experts)
    routing, expected = route(x_TD, weight_ED, 4), reference(x_TD, weight_ED, 4)
    assert torch.equal(routing.expert_TK, expected.expert_TK)
    assert_within(routing.weight_TK, expected.weight_TK, SIMPLE)
    assert_rows_agree(routing)


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_a_program_that_places_several_blocks(implementation, monkeypatch, programs):
    x_TD, weight_ED = inputs(190, 7)
    plain = route(x_TD, weight_ED, 2)
    if implementation == "triton":
        monkeypatch.setattr("storyteller_kernels.routing.kernel.PLACING_PROGRAMS", programs)
    for first, second in zip(route(x_TD, weight_ED, 2), plain, strict=True):
        assert_within(first, second, EXACT)
    assert_rows_agree(plain)


def test_twice_is_the_same_bits():
    of = inputs(150, 16)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        routing = route(*of, 4)
        cotangents = [torch.randn(getattr(routing, name).shape) for name in OUTPUTS]
        runs.append((*routing, *gradients(routing, OUTPUTS, cotangents, of)))
    for first, second in zip(*runs, strict=True):
        assert_within(first, second, EXACT)
