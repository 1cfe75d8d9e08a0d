"""route on a GPU, at sizes that the interpreter cannot reach, and what only a GPU can show."""

import pytest
import torch
from storyteller_kernels import Routing, route
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tests.support.tolerances import BF16, EXACT, SIMPLE, assert_within

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
every_size = pytest.mark.parametrize(
    ("tokens", "width", "experts", "top_k"),
    [(16384, 1024, 8, 2), (16384, 1024, 64, 4), (3001, 768, 9, 1), (100, 1000, 256, 8), (1000003, 64, 8, 2)],
)
OUTPUTS = ["weight_TK", "prob_TE", "prob_sum_E", "z_sum"]


def reference(x_TD: Tensor, weight_ED: Tensor, expert_TK: Tensor) -> dict[str, Tensor]:
    """Compute what follows from a choice of experts, in fp64."""
    logit_TE = x_TD.double() @ weight_ED.double().t()
    prob_TE = logit_TE.softmax(dim=-1)
    kept_TK = prob_TE.gather(1, expert_TK)
    z_sum = logit_TE.logsumexp(dim=-1).square().sum()
    weight_TK = kept_TK / kept_TK.sum(dim=-1, keepdim=True)
    return {"weight_TK": weight_TK, "prob_TE": prob_TE, "prob_sum_E": prob_TE.sum(dim=0), "z_sum": z_sum}


def inputs(tokens: int, width: int, experts: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(tokens)
    x_TD = torch.randn(tokens, width, device="cuda").to(dtype).requires_grad_()
    return x_TD, torch.randn(experts, width, device="cuda").mul(2 * width**-0.5).requires_grad_()


def assert_rows_agree(routing: Routing) -> None:
    """Assert that the rows are the (expert, token) pairs in order, in all fields."""
    tokens, top_k = routing.expert_TK.shape
    pair_N = (routing.expert_TK * tokens + torch.arange(tokens, device="cuda")[:, None]).flatten()
    order_N = pair_N.argsort()
    assert torch.equal(routing.token_N, order_N // top_k)
    assert torch.equal(routing.row_TK.flatten()[order_N], torch.arange(tokens * top_k, device="cuda"))
    assert torch.equal(routing.count_E, routing.expert_TK.flatten().bincount(minlength=len(routing.count_E)))


@every_size
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_field_and_gradient(tokens, width, experts, top_k, dtype):
    x_TD, weight_ED = inputs(tokens, width, experts, dtype)
    routing = route(x_TD, weight_ED, top_k)
    expected = reference(x_TD, weight_ED, routing.expert_TK)
    for name in OUTPUTS:
        assert_within(getattr(routing, name), expected[name], SIMPLE)
    # The chosen are the largest, in order; where rounding makes two of them equal, either may come first.
    kept_TK = expected["prob_TE"].gather(1, routing.expert_TK)
    assert_within(kept_TK, expected["prob_TE"].topk(top_k).values, SIMPLE)
    assert (routing.expert_TK.sort(dim=1).values.diff(dim=1) > 0).all()
    assert_rows_agree(routing)

    cotangents = [torch.randn_like(getattr(routing, name)) for name in OUTPUTS]
    grads = torch.autograd.grad([getattr(routing, name) for name in OUTPUTS], (x_TD, weight_ED), cotangents)
    wanted_grads = torch.autograd.grad(
        [expected[name] for name in OUTPUTS], (x_TD, weight_ED), [cotangent.double() for cotangent in cotangents]
    )
    assert_within(grads[0], wanted_grads[0], BF16 if dtype == torch.bfloat16 else SIMPLE)
    assert_within(grads[1], wanted_grads[1], SIMPLE)


def test_all_tokens_to_one_expert():
    x_TD, weight_ED = torch.rand(40000, 64, device="cuda").bfloat16() + 0.1, torch.zeros(8, 64, device="cuda")
    weight_ED[5] = 1.0
    routing = route(x_TD, weight_ED, 1)
    assert routing.count_E.tolist() == [0, 0, 0, 0, 0, 40000, 0, 0]
    assert torch.equal(routing.token_N, torch.arange(40000, device="cuda"))


@every_size
def test_twice_is_the_same_bits(tokens, width, experts, top_k):
    of = inputs(tokens, width, experts, torch.bfloat16)
    runs = []
    for _ in range(2):
        routing = route(*of, top_k)
        total = routing.weight_TK.square().sum() + routing.prob_sum_E.square().sum() + routing.z_sum
        runs.append((*routing, *torch.autograd.grad(total, of)))
    for first, second in zip(*runs, strict=True):
        assert_within(first, second, EXACT)


def test_at_most_three_launches_and_no_word_to_the_host():
    x_TD, weight_ED = inputs(4096, 512, 8, torch.bfloat16)
    route(x_TD, weight_ED, 2).prob_sum_E.sum().backward()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        torch.cuda.set_sync_debug_mode("error")
        try:
            routing = route(x_TD, weight_ED, 2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    launched = [event.name for event in record.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 1 <= len(launched) <= 3, launched
    # A cotangent of the right size, created before host reads are forbidden.
    cotangent_TK = torch.randn_like(routing.weight_TK)
    torch.cuda.set_sync_debug_mode("error")
    try:
        routing.weight_TK.backward(cotangent_TK)
    finally:
        torch.cuda.set_sync_debug_mode("default")
