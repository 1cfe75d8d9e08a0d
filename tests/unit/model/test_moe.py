"""The MoE layer against a loop over tokens in fp64, and noisy gating."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyteller_ds.model.feed_forward import FeedForward
from storyteller_ds.model.moe.local import LocalMoE
from storyteller_ds.model.moe.router import Router
from tests.support.tolerances import COMPLEX, EXACT, SIMPLE, assert_within


def feed_forward(layer: LocalMoE, e: int, x_D: Tensor) -> Tensor:
    """Apply expert e to one token, in fp64."""
    experts = layer.experts
    hidden = experts.gate_up_proj[e].double() @ x_D
    if experts.gate_up_bias is not None:
        hidden = hidden + experts.gate_up_bias[e].double()
    if experts.activation == "swiglu":
        gate, up = hidden.chunk(2)
        hidden = gate * torch.sigmoid(gate) * up
    elif experts.activation == "gelu":
        hidden = hidden / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    else:
        hidden = hidden.clamp(min=0)
    out = experts.down_proj[e].double() @ hidden
    return out if experts.down_bias is None else out + experts.down_bias[e].double()


def reference(layer: LocalMoE, x_BSD: Tensor) -> tuple[Tensor, list[int]]:
    """Compute every token's output separately; return the outputs and each expert's number of rows."""
    counts = [0] * len(layer.router.weight)
    rows = []
    for x_D in x_BSD.double().flatten(0, 1):
        prob_E = torch.softmax(layer.router.weight.double() @ x_D, dim=0)
        best = [e for _, e in sorted((-prob, e) for e, prob in enumerate(prob_E.tolist()))[: layer.router.top_k]]
        for e in best:
            counts[e] += 1
        kept = sum(prob_E[e] for e in best)
        rows.append(sum(prob_E[e] / kept * feed_forward(layer, e, x_D) for e in best))
    return torch.stack(rows).view_as(x_BSD), counts


def inputs(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * batch + length)
    return torch.randn(batch, length, 32, generator=generator).requires_grad_()


@pytest.mark.parametrize(
    ("experts", "top_k", "activation", "bias", "shape"),
    [
        (8, 2, "swiglu", False, (3, 7)),
        (4, 1, "gelu", True, (1, 5)),
        (4, 4, "relu", True, (2, 3)),
        (64, 4, "swiglu", True, (1, 9)),
        (16, 2, "gelu", False, (1, 1)),
    ],
)
def test_forward_and_gradients(make_run, fill, experts, top_k, activation, bias, shape):
    run = make_run({"activation": activation, "bias": bias}, {"num_experts": experts, "top_k": top_k})
    layer = fill(LocalMoE(run.model, run.moe))
    x_BSD = inputs(*shape)
    actual_BSD, stats = layer(x_BSD)
    expected_BSD, counts = reference(layer, x_BSD)
    assert stats.count_E.tolist() == counts
    assert_within(actual_BSD, expected_BSD, SIMPLE)
    leaves = dict(layer.named_parameters(), x=x_BSD)
    cotangent_BSD = torch.randn(actual_BSD.shape)
    # Without allow_unused: experts without tokens must have a gradient, and it is zero.
    grads = torch.autograd.grad(actual_BSD, list(leaves.values()), cotangent_BSD)
    expected = torch.autograd.grad(expected_BSD, list(leaves.values()), cotangent_BSD.double())
    for name, grad, wanted in zip(leaves, grads, expected, strict=True):
        if name == "router.weight" and top_k == 1:
            assert grad.abs().max() < SIMPLE  # with top-1, the gate weight is 1 whatever the logits
        else:
            assert_within(grad, wanted, COMPLEX)
    for e, count in enumerate(counts):
        assert bool(grads[1][e].any()) == (count > 0)


def test_one_expert_is_the_dense_layer(make_run, fill):
    run = make_run({"bias": True}, {"num_experts": 1, "top_k": 1})
    layer, dense = fill(LocalMoE(run.model, run.moe)), FeedForward(run.model)
    dense.load_state_dict({
        "gate_up_proj.weight": layer.experts.gate_up_proj[0],
        "gate_up_proj.bias": layer.experts.gate_up_bias[0],
        "down_proj.weight": layer.experts.down_proj[0],
        "down_proj.bias": layer.experts.down_bias[0],
    })  # fmt: skip
    x_BSD = inputs(2, 6)
    assert_within(layer(x_BSD)[0], dense(x_BSD)[0], SIMPLE)


def test_no_token_is_dropped_when_all_want_one_expert(make_run, fill):
    run = make_run({}, {"num_experts": 8, "top_k": 1})
    layer = fill(LocalMoE(run.model, run.moe))
    x_BSD = inputs(4, 16).abs()
    with torch.no_grad():
        layer.router.weight.zero_()[5] = 1.0
    out_BSD, stats = layer(x_BSD)
    assert stats.count_E.tolist() == [0, 0, 0, 0, 0, 64, 0, 0]
    assert_within(out_BSD, reference(layer, x_BSD)[0], SIMPLE)


def noisy_layer(make_run, fill) -> LocalMoE:
    run = make_run({}, {"num_experts": 8, "noisy_gating": True})
    return fill(LocalMoE(run.model, run.moe))


def test_noise_is_for_training_only(make_run, fill):
    noisy, x_BSD = noisy_layer(make_run, fill).eval(), inputs(3, 16)
    run = make_run({}, {"num_experts": 8})
    plain = LocalMoE(run.model, run.moe)
    plain.load_state_dict(noisy.state_dict(), strict=False)
    assert plain.router.noise_weight is None
    assert_within(noisy(x_BSD)[0], plain.train()(x_BSD)[0], EXACT)
    noisy.train()
    torch.manual_seed(1)
    first, second = noisy.router(x_BSD.flatten(0, 1)), noisy.router(x_BSD.flatten(0, 1))
    assert not torch.equal(first.expert_TK, second.expert_TK)


def test_noise_has_the_learned_scale(make_run, fill, monkeypatch):
    """Shazeer et al. 2017, eq. 4: H(x) = x W_g + N(0, 1) * softplus(x W_noise)."""
    router, x_TD = noisy_layer(make_run, fill).router.train(), inputs(1, 11)[0]
    normal_TE = torch.randn(11, 8)
    monkeypatch.setattr(torch, "randn_like", lambda like: normal_TE)
    routing = router(x_TD)
    x, gate, noise = x_TD.double(), router.weight.double(), router.noise_weight.double()
    logit_TE = x @ gate.t() + normal_TE * (1 + (x @ noise.t()).exp()).log()
    assert_within(routing.prob_sum_E, torch.softmax(logit_TE, dim=1).sum(dim=0), SIMPLE)
    assert torch.equal(routing.expert_TK, logit_TE.topk(2).indices)
    cotangent_TK = torch.randn(11, 2)
    (grad,) = torch.autograd.grad(routing.weight_TK, router.noise_weight, cotangent_TK)
    kept_TK = torch.softmax(logit_TE.gather(1, routing.expert_TK), dim=1)
    (wanted,) = torch.autograd.grad(kept_TK, router.noise_weight, cotangent_TK.double())
    assert_within(grad, wanted, COMPLEX)


def test_noise_is_standard_normal(make_run):
    run = make_run({}, {"num_experts": 64, "noisy_gating": True})
    router = Router(run.model, run.moe).train()
    nn.init.zeros_(router.weight)
    nn.init.zeros_(router.noise_weight)
    torch.manual_seed(2)
    # The logits are pure noise of scale softplus(0) = ln 2: the sum is that of any such sample, up to its spread.
    z_sum = router(torch.zeros(400, 32)).z_sum.detach()
    expected = torch.logsumexp(F.softplus(torch.zeros(())) * torch.randn(400, 64), dim=1).square().sum()
    assert float(z_sum) == pytest.approx(float(expected), rel=0.01)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_router_computes_in_fp32_what_it_gets_in_bf16(make_run, fill, noisy):
    run = make_run({}, {"num_experts": 8, "noisy_gating": noisy})
    router, x_TD = fill(Router(run.model, run.moe)).train(), inputs(1, 16)[0].bfloat16()
    rounded = copy.deepcopy(router)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    torch.manual_seed(4)
    plain = rounded(x_TD.float())
    torch.manual_seed(4)
    inside = router(x_TD)
    for first, second in zip(inside, plain, strict=True):
        assert_within(first, second, EXACT)
