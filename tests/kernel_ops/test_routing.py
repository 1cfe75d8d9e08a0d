"""route against a token-by-token loop in fp64."""

from typing import NamedTuple

import pytest
import torch
from storyteller_kernels import Routing, route
from torch import Tensor

from storyteller_ds.testing.tolerances import EXACT, SIMPLE, assert_within

D = 12
CASES = [(1, 4, 1), (1, 8, 2), (7, 4, 4), (13, 8, 2), (33, 16, 4), (29, 64, 1), (17, 64, 2), (5, 1, 1)]
every_case = pytest.mark.parametrize(("tokens", "experts", "top_k"), CASES)


class Expected(NamedTuple):
    weight_TK: Tensor
    expert_TK: Tensor
    prob_TE: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    entropy_sum: Tensor


def reference(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None = None) -> Expected:
    """Every token on its own: softmax, sort by (probability, lower index), renormalise."""
    weights, experts, probs, squares, entropies = [], [], [], [], []
    for t, x_D in enumerate(x_TD.double()):
        logit_E = torch.stack([(x_D * row_D).sum() for row_D in weight_ED.double()])
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


def inputs(tokens: int, experts: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1000 * tokens + experts)
    return torch.randn(tokens, D, requires_grad=True), torch.randn(experts, D).mul(0.5).requires_grad_()


def assert_rows_agree(routing: Routing) -> None:
    """The rows are the (expert, token) pairs in order, and all fields say so."""
    tokens, top_k = routing.expert_TK.shape
    pairs = sorted((int(routing.expert_TK[t, k]), t, k) for t in range(tokens) for k in range(top_k))
    assert routing.token_N.tolist() == [t for _, t, _ in pairs]
    for row, (_, t, k) in enumerate(pairs):
        assert routing.row_TK[t, k] == row
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
    assert all(ids.dtype == torch.int64 for ids in (routing.expert_TK, routing.count_E, routing.row_TK))
    assert_rows_agree(routing)


@every_case
def test_gradients(tokens, experts, top_k):
    x_TD, weight_ED = inputs(tokens, experts)
    cotangents = [torch.randn(tokens, top_k), torch.randn(tokens, experts), torch.randn(experts), torch.randn(())]

    def gradients(result: Routing | Expected) -> tuple[Tensor, ...]:
        outputs = [result.weight_TK, result.prob_TE, result.prob_sum_E, result.z_sum]
        grads = [c.to(o.dtype) for c, o in zip(cotangents, outputs, strict=True)]
        return torch.autograd.grad(outputs, (x_TD, weight_ED), grads)

    routing = route(x_TD, weight_ED, top_k)
    assert not routing.entropy_sum.requires_grad
    expected = gradients(reference(x_TD, weight_ED, top_k))
    for actual, wanted in zip(gradients(routing), expected, strict=True):
        assert_within(actual, wanted, SIMPLE)


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


def test_fp32_whatever_the_precision_around_it():
    x_TD, weight_ED = inputs(40, 16)
    low_TD = x_TD.detach().bfloat16()
    plain = route(low_TD.float(), weight_ED, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = route(low_TD, weight_ED, 2)
    for first, second in zip(inside, plain, strict=True):
        assert_within(first, second, EXACT)
    # Rounding the weight to bf16 would have been seen.
    rounded = route(low_TD.float(), weight_ED.bfloat16().float(), 2)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(rounded.z_sum, plain.z_sum, SIMPLE)


def test_twice_is_the_same_bits():
    x_TD, weight_ED = inputs(33, 16)
    for first, second in zip(route(x_TD, weight_ED, 4), route(x_TD, weight_ED, 4), strict=True):
        assert_within(first, second, EXACT)
