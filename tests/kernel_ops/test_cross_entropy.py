"""linear_cross_entropy, computed in chunks, against whole logits in fp64."""

import pytest
import torch
from storyteller_kernels.cross_entropy import linear_cross_entropy, reference
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tests.support.tolerances import BF16, COMPLEX, EXACT, SIMPLE, assert_within

IGNORED = -100
SIZES = [(1, 3, 5), (7, 4, 11), (13, 33, 17), (64, 8, 100), (5, 1, 1)]
every_size = pytest.mark.parametrize(("tokens", "width", "vocabulary"), SIZES)
pytestmark = [
    pytest.mark.parametrize("implementation", ["cpu", "onednn", "triton"], indirect=True),
    pytest.mark.usefixtures("implementation"),
]
every_chunk = pytest.mark.parametrize("chunk_size", [1, 3, 5, 13, 64, None])


def inputs(tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return x, weight and targets; every third target is ignored."""
    torch.manual_seed(tokens + width + vocabulary)
    x_TD, weight_VD = torch.randn(tokens, width).to(dtype), torch.randn(vocabulary, width).to(dtype)
    target_T = torch.randint(vocabulary, (tokens,))
    target_T[2::3] = IGNORED
    return [x_TD.requires_grad_(), weight_VD.requires_grad_(), target_T]


def by_hand(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, softcap: float | None = None) -> Tensor:
    """Compute the loss token by token, in fp64."""
    nll_sum = x_TD.double().sum() * 0 + weight_VD.double().sum() * 0
    for x_D, target in zip(x_TD.double(), target_T.tolist(), strict=True):
        if target != IGNORED:
            logits_V = (weight_VD.double() * x_D).sum(dim=1)
            if softcap is not None:
                doubled_V = (2 * logits_V / softcap).exp()
                logits_V = softcap * (doubled_V - 1) / (doubled_V + 1)
            nll_sum = nll_sum + (logits_V - logits_V.max()).exp().sum().log() + logits_V.max() - logits_V[target]
    return nll_sum


def value_and_gradients(nll_sum: Tensor, x_TD: Tensor, weight_VD: Tensor) -> list[Tensor]:
    cotangent = torch.tensor(-1.7, dtype=nll_sum.dtype)
    return [nll_sum, *torch.autograd.grad(nll_sum, (x_TD, weight_VD), cotangent)]


@every_size
@every_chunk
def test_loss_and_gradients(poisoned_memory, tokens, width, vocabulary, chunk_size):
    x_TD, weight_VD, target_T = inputs(tokens, width, vocabulary)
    actual = value_and_gradients(
        linear_cross_entropy(x_TD, weight_VD, target_T, IGNORED, chunk_size=chunk_size), x_TD, weight_VD
    )
    expected = value_and_gradients(by_hand(x_TD, weight_VD, target_T), x_TD, weight_VD)
    for one, wanted in zip(actual, expected, strict=True):
        assert_within(one, wanted, SIMPLE)


@every_size
@pytest.mark.parametrize("chunk_size", [3, None])
@pytest.mark.parametrize("softcap", [0.7, 15.0])
def test_capped_logits(poisoned_memory, tokens, width, vocabulary, chunk_size, softcap):
    x_TD, weight_VD, target_T = inputs(tokens, width, vocabulary)
    expected = value_and_gradients(by_hand(x_TD, weight_VD, target_T, softcap), x_TD, weight_VD)
    for actual in (
        linear_cross_entropy(x_TD, weight_VD, target_T, IGNORED, chunk_size, softcap),
        reference.linear_cross_entropy(x_TD, weight_VD, target_T, IGNORED, softcap),
    ):
        for one, wanted in zip(value_and_gradients(actual, x_TD, weight_VD), expected, strict=True):
            assert_within(one, wanted, SIMPLE)


@every_size
def test_the_reference(tokens, width, vocabulary):
    x_TD, weight_VD, target_T = inputs(tokens, width, vocabulary)
    actual = value_and_gradients(reference.linear_cross_entropy(x_TD, weight_VD, target_T, IGNORED), x_TD, weight_VD)
    expected = value_and_gradients(by_hand(x_TD, weight_VD, target_T), x_TD, weight_VD)
    for one, wanted in zip(actual, expected, strict=True):
        assert_within(one, wanted, SIMPLE)


def test_fp64():
    x_TD, weight_VD, target_T = inputs(13, 9, 17, torch.float64)
    nll_sum = linear_cross_entropy(x_TD, weight_VD, target_T, IGNORED, chunk_size=4)
    assert nll_sum.dtype == torch.float64
    torch.testing.assert_close(nll_sum, by_hand(x_TD, weight_VD, target_T), rtol=1e-12, atol=0)


@every_chunk
@pytest.mark.parametrize("tokens", [0, 6])
def test_nothing_that_counts(poisoned_memory, tokens, chunk_size):
    x_TD, weight_VD, target_T = inputs(tokens, 4, 9)
    target_T.fill_(IGNORED)
    nll_sum = linear_cross_entropy(x_TD, weight_VD, target_T, IGNORED, chunk_size=chunk_size)
    assert nll_sum.item() == 0.0
    nll_sum.backward()
    assert torch.equal(x_TD.grad, torch.zeros_like(x_TD))
    assert torch.equal(weight_VD.grad, torch.zeros_like(weight_VD))


def test_an_ignored_token_may_hold_anything():
    # As the rows of padded positions do.
    x_TD, weight_VD, target_T = inputs(9, 4, 11)
    spoiled_TD = x_TD.detach().clone()
    spoiled_TD[target_T == IGNORED] = 1e6
    spoiled_TD.requires_grad_()
    plain = value_and_gradients(linear_cross_entropy(x_TD, weight_VD, target_T, chunk_size=4), x_TD, weight_VD)
    spoiled = value_and_gradients(
        linear_cross_entropy(spoiled_TD, weight_VD, target_T, chunk_size=4), spoiled_TD, weight_VD
    )
    for one, other in zip(plain, spoiled, strict=True):
        assert_within(one, other, EXACT)


def test_another_index_may_mean_ignored():
    x_TD, weight_VD, target_T = inputs(12, 4, 9)
    zeroed_T = target_T.masked_fill(target_T == IGNORED, 0)
    only_real_T = zeroed_T.masked_fill(zeroed_T == 0, IGNORED)
    actual = linear_cross_entropy(x_TD, weight_VD, zeroed_T, 0, chunk_size=5)
    assert_within(actual, by_hand(x_TD, weight_VD, only_real_T), SIMPLE)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(actual, by_hand(x_TD, weight_VD, zeroed_T), SIMPLE)


def test_large_logits_stay_finite():
    x_TD, weight_VD, target_T = inputs(7, 4, 9)
    x_TD, weight_VD = (tensor.detach().mul(100).requires_grad_() for tensor in (x_TD, weight_VD))
    actual = value_and_gradients(linear_cross_entropy(x_TD, weight_VD, target_T), x_TD, weight_VD)
    for one, wanted in zip(
        actual, value_and_gradients(by_hand(x_TD, weight_VD, target_T), x_TD, weight_VD), strict=True
    ):
        assert_within(one, wanted, COMPLEX)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    x_TD, weight_VD, target_T = inputs(64, 16, 50, dtype)
    actual = value_and_gradients(linear_cross_entropy(x_TD, weight_VD, target_T, chunk_size=10), x_TD, weight_VD)
    assert [tensor.dtype for tensor in actual] == [torch.float32, dtype, dtype]
    for one, wanted in zip(
        actual, value_and_gradients(by_hand(x_TD, weight_VD, target_T), x_TD, weight_VD), strict=True
    ):
        assert_within(one, wanted, BF16)


def test_the_gradient_of_the_weight_grows_in_fp32():
    # Every token adds 1 to the same entries (V = 2, logits 0, so p = 1/2, x = 2): a bf16 sum would stay at 256.
    x_TD = torch.full((1000, 1), 2.0, dtype=torch.bfloat16)
    weight_VD = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(x_TD, weight_VD, torch.zeros(1000, dtype=torch.int64), chunk_size=1).backward()
    assert weight_VD.grad.tolist() == [[-1000.0], [1000.0]]


def test_autocast_sets_the_dtype_of_the_product():
    x_TD, weight_VD, target_T = inputs(20, 8, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = value_and_gradients(linear_cross_entropy(x_TD, weight_VD, target_T, chunk_size=6), x_TD, weight_VD)
    assert all(tensor.dtype == torch.float32 for tensor in actual)
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (x_TD, weight_VD)]
    expected = value_and_gradients(linear_cross_entropy(*low, target_T, chunk_size=6), *low)
    for one, wanted in zip(actual, expected, strict=True):
        assert_within(one, wanted, EXACT)


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_gradient_that_is_asked_for(wanted):
    x_TD, weight_VD, target_T = inputs(9, 4, 11)
    both = value_and_gradients(linear_cross_entropy(x_TD, weight_VD, target_T, chunk_size=4), x_TD, weight_VD)
    some = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate((x_TD, weight_VD))]
    (linear_cross_entropy(*some, target_T, chunk_size=4) * -1.7).backward()
    assert some[1 - wanted].grad is None
    assert_within(some[wanted].grad, both[1 + wanted], EXACT)


def test_strides_do_not_matter():
    x_TD, weight_VD, target_T = inputs(10, 6, 9)
    turned = [tensor.detach().t().contiguous().t().requires_grad_() for tensor in (x_TD, weight_VD)]
    every_second_T = target_T.repeat_interleave(2)[::2]
    actual = value_and_gradients(linear_cross_entropy(*turned, every_second_T, chunk_size=4), *turned)
    expected = value_and_gradients(by_hand(x_TD, weight_VD, target_T), x_TD, weight_VD)
    for one, wanted in zip(actual, expected, strict=True):
        assert_within(one, wanted, SIMPLE)


def test_a_second_backward_pass_is_refused():
    # The first pass scales the gradients in place.
    x_TD, weight_VD, target_T = inputs(5, 4, 9)
    nll_sum = linear_cross_entropy(x_TD, weight_VD, target_T)
    nll_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll_sum.backward()


def test_twice_is_the_same_bits():
    x_TD, weight_VD, target_T = inputs(33, 8, 50)
    runs = [
        value_and_gradients(linear_cross_entropy(x_TD, weight_VD, target_T, chunk_size=7), x_TD, weight_VD)
        for _ in range(2)
    ]
    for first, second in zip(*runs, strict=True):
        assert_within(first, second, EXACT)


def peak_bytes(loss, *tensors: Tensor) -> int:
    """Return the most memory that a forward and backward pass held at once, besides its inputs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss(*tensors).backward()
    held = peak = 0
    for event in sorted(recorded.events(), key=lambda event: event.time_range.start):
        held += event.self_cpu_memory_usage
        peak = max(peak, held)
    return peak


def test_whole_logits_are_never_in_memory(implementation):
    if implementation == "triton" and not torch.cuda.is_available():
        pytest.skip("Triton's interpreter copies what a kernel gets")
    tokens, width, vocabulary, chunk_size = 1024, 8, 512, 32
    tensors = inputs(tokens, width, vocabulary)
    whole = peak_bytes(reference.linear_cross_entropy, *tensors)
    chunked = peak_bytes(lambda *t: linear_cross_entropy(*t, chunk_size=chunk_size), *tensors)
    logits, gradients = 4 * tokens * vocabulary, 4 * width * (tokens + vocabulary)
    assert whole >= 2 * logits
    # Two chunks of logits at once, the gradients (for the weight, a product too), and a small remainder.
    assert chunked <= 2 * logits * chunk_size / tokens + 2 * gradients + 2**14


def test_without_gradients_none_are_made():
    tensors = inputs(64, 8, 100)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        nll_sum = linear_cross_entropy(*tensors, chunk_size=16)
    assert not nll_sum.requires_grad
    assert_within(nll_sum, by_hand(*tensors), SIMPLE)
    # One product per chunk.
    assert sum(event.name in ("aten::mm", "mkldnn::_linear_pointwise") for event in recorded.events()) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    tokens, width, vocabulary = 8192, 512, 16384
    with torch.device("cuda"):
        x_TD, weight_VD, target_T = inputs(tokens, width, vocabulary, torch.bfloat16)
        scaled_VD = weight_VD.detach().mul(width**-0.5).requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        actual = value_and_gradients(linear_cross_entropy(x_TD, scaled_VD, target_T), x_TD, scaled_VD)
        peak = torch.cuda.max_memory_allocated() - before
        whole = reference.linear_cross_entropy(x_TD.double(), scaled_VD.double(), target_T)
        expected = value_and_gradients(whole, x_TD, scaled_VD)
    assert peak < 4 * tokens * vocabulary
    for one, wanted in zip(actual, expected, strict=True):
        assert_within(one, wanted, BF16)
