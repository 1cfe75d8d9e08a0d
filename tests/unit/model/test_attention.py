"""Attention against loops over heads and positions in fp64."""

import cmath

import pytest
import torch
from torch import Tensor

from storyteller_ds.model.attention import Attention, RotaryEmbedding, rotate
from tests.support.tolerances import COMPLEX, EXACT, SIMPLE, assert_within


class ListCache:
    """Keeps keys and values by concatenation."""

    def __init__(self) -> None:
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []

    def extend(self, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        self.k.append(k_BHSD)
        self.v.append(v_BHSD)
        return torch.cat(self.k, dim=2), torch.cat(self.v, dim=2)


def turned(x_D: Tensor, position: int, theta: float) -> Tensor:
    """Multiply features i and i + D/2, as a complex number, by e^(1j * position * theta^(-2i/D))."""
    half = len(x_D) // 2
    number = torch.complex(x_D[:half], x_D[half:])
    turn = torch.tensor([cmath.exp(1j * position * theta ** (-2 * i / len(x_D))) for i in range(half)])
    number = number * turn.to(number.dtype)
    return torch.cat([number.real, number.imag])


def reference(attention: Attention, x_BSD: Tensor, kv_heads: int, theta: float | None) -> Tensor:
    """Compute attention one query at a time."""
    x_BSD = x_BSD.double()
    size = attention.head_dim

    def normal(norm: torch.nn.Module | None, x_D: Tensor) -> Tensor:
        if norm is None:
            return x_D
        return x_D / (x_D.square().mean() + norm.eps).sqrt() * norm.weight.double()

    heads = x_BSD.shape[2] // size

    def project(linear: torch.nn.Linear, x_D: Tensor) -> Tensor:
        y = linear.weight.double() @ x_D
        return y if linear.bias is None else y + linear.bias.double()

    def head(linear: torch.nn.Linear, x_D: Tensor, h: int) -> Tensor:
        return project(linear, x_D)[h * size : (h + 1) * size]

    batch = []
    for x_SD in x_BSD:
        rows = []
        for s, x_D in enumerate(x_SD):
            outputs = []
            for h in range(heads):
                g = h // (heads // kv_heads)
                q = normal(attention.q_norm, head(attention.q_proj, x_D, h))
                keys = [normal(attention.k_norm, head(attention.k_proj, x_SD[j], g)) for j in range(s + 1)]
                if theta is not None:
                    q = turned(q, s, theta)
                    keys = [turned(k, j, theta) for j, k in enumerate(keys)]
                score = torch.stack([q @ k / size**0.5 for k in keys])
                weight = score.exp() / score.exp().sum()
                outputs.append(sum(weight[j] * head(attention.v_proj, x_SD[j], g) for j in range(s + 1)))
            rows.append(project(attention.o_proj, torch.cat(outputs)))
        batch.append(torch.stack(rows))
    return torch.stack(batch)


def inputs(length: int) -> Tensor:
    return torch.randn(2, length, 32, generator=torch.Generator().manual_seed(length)).requires_grad_()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("theta", [None, 50.0])
@pytest.mark.parametrize(("kv_heads", "bias", "length"), [(4, False, 1), (4, True, 5), (2, False, 7), (1, True, 3)])
def test_forward_and_gradients(make_run, fill, theta, kv_heads, bias, length, qk_norm):
    attention = fill(Attention(make_run({"num_kv_heads": kv_heads, "bias": bias, "qk_norm": qk_norm}).model))
    x_BSD = inputs(length)
    rotary = None if theta is None else RotaryEmbedding(8, theta)(torch.arange(length))
    actual_BSD = attention(x_BSD, rotary)
    expected_BSD = reference(attention, x_BSD, kv_heads, theta)
    assert_within(actual_BSD, expected_BSD, SIMPLE)
    leaves = dict(attention.named_parameters(), x=x_BSD)
    cotangent_BSD = torch.randn(actual_BSD.shape)
    grads = torch.autograd.grad(actual_BSD, list(leaves.values()), cotangent_BSD)
    expected = torch.autograd.grad(expected_BSD, list(leaves.values()), cotangent_BSD.double())
    for name, grad, wanted in zip(leaves, grads, expected, strict=True):
        # With qk-norm, a bias changes the scores of a query by different amounts.
        if (name == "k_proj.bias" and theta is None and not qk_norm) or (length == 1 and name[0] in "qk"):
            # Adding the same number to every score of a query changes nothing: zero up to rounding.
            assert wanted.abs().max() < SIMPLE
            assert grad.abs().max() < SIMPLE
        else:
            assert_within(grad, wanted, COMPLEX)


@pytest.mark.parametrize("length", [1, 9])
def test_repeating_shared_heads_changes_nothing(make_run, fill, monkeypatch, length):
    attention = fill(Attention(make_run({"num_kv_heads": 2}).model))
    x_BSD = inputs(length)
    mask = torch.ones(length, length, dtype=torch.bool).tril() & ~torch.ones(length, length, dtype=torch.bool).tril(-4)
    for mask_BHSS in (None, mask[None, None]):
        found = []
        for lacks in (False, True):
            monkeypatch.setattr("storyteller_ds.model.attention.lacks_grouped_kernel", lambda *_, it=lacks: it)
            y_BSD = attention(x_BSD, None, mask_BHSS=mask_BHSS)
            found.append([y_BSD, *torch.autograd.grad(y_BSD.square().sum(), [x_BSD, attention.v_proj.weight])])
        for one, other in zip(*found, strict=True):
            assert_within(other, one, SIMPLE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_mask_shared_heads_do_not_keep_all_probabilities(make_run, fill, dtype):
    attention = fill(Attention(make_run({"num_kv_heads": 2}).model)).to("cuda", dtype)
    x_BSD = inputs(16).detach().to("cuda", dtype)
    mask_BHSS = torch.ones(2, 1, 16, 16, dtype=torch.bool, device="cuda").tril()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
        masked_BSD = attention(x_BSD, None, mask_BHSS=mask_BHSS)
    assert_within(masked_BSD, attention(x_BSD, None), COMPLEX if dtype == torch.float32 else 2e-2)


def test_grouped_heads_are_repeated_heads(make_run, fill):
    grouped = fill(Attention(make_run({"num_kv_heads": 2}).model))
    full = Attention(make_run().model)
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    x_BSD = inputs(9)
    assert_within(grouped(x_BSD, None), full(x_BSD, None), SIMPLE)
    # Heads 0 and 1 share the first key/value head, not heads 0 and 2.
    state["k_proj.weight"] = state["k_proj.weight"].unflatten(0, (4, 8))[[0, 2, 1, 3]].flatten(0, 1)
    full.load_state_dict(state)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(grouped(x_BSD, None), full(x_BSD, None), SIMPLE)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 5], [3, 1, 4, 1], [8, 1], [1, 8]], ids=str)
def test_any_chunks_with_a_cache_are_one_pass(make_run, fill, kv_heads, chunks):
    attention = fill(Attention(make_run({"num_kv_heads": kv_heads}).model))
    rotary = RotaryEmbedding(8, 100.0)
    x_BSD, position_S = inputs(9), torch.arange(9)
    cache = ListCache()
    pieces = zip(x_BSD.split(chunks, dim=1), position_S.split(chunks), strict=True)
    chunked_BSD = torch.cat([attention(x, rotary(position), cache) for x, position in pieces], dim=1)
    assert_within(chunked_BSD, attention(x_BSD, rotary(position_S)), SIMPLE)


def test_only_distances_matter_to_rotary_positions(make_run, fill):
    attention = fill(Attention(make_run().model))
    x_BSD, rotary = inputs(6), RotaryEmbedding(8, 100.0)
    here_BSD = attention(x_BSD, rotary(torch.arange(6)))
    assert_within(attention(x_BSD, rotary(torch.arange(40, 46))), here_BSD, COMPLEX)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(attention(x_BSD, rotary(torch.arange(6) * 2)), here_BSD, COMPLEX)


def test_position_zero_is_not_turned():
    x_BHSD = torch.randn(1, 2, 1, 8)
    assert_within(rotate(x_BHSD, *RotaryEmbedding(8, 10_000.0)(torch.zeros(1, dtype=torch.int64))), x_BHSD, EXACT)


def test_angles_do_not_suffer_from_a_cast_of_the_module():
    position_S = torch.arange(1000, 1024)
    plain, cast = RotaryEmbedding(16, 10_000.0), RotaryEmbedding(16, 10_000.0).bfloat16()
    for first, second in zip(plain(position_S), cast(position_S), strict=True):
        assert_within(second, first, EXACT)
