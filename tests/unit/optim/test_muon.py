"""Muon against singular values, against torch's Muon, and on parameters cut into partitions."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines.differences import relative_difference
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.optim.muon import (
    _COEFFICIENTS,
    Held,
    Muon,
    Stack,
    hidden_matrices,
    orthogonalized,
    whole_parameter,
    zero_partition,
)
from tests.support.tolerances import COMPLEX, EXACT, SIMPLE, assert_within

LR, DECAY, MOMENTUM = 0.01, 0.1, 0.9
SHAPES = [(1, 8, 8), (3, 5, 12), (2, 12, 5), (4, 1, 6), (2, 6, 1), (1, 1, 1), (2, 48, 16)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def polynomial(s: Tensor) -> Tensor:
    for a, b, c in ((7.7110, -22.1136, 16.2484), (3.2155, -2.4114, 0.5013), (2.2185, -1.5941, 0.4108)):
        s = a * s + b * s**3 + c * s**5
    return s


def by_singular_values(x_RC: Tensor) -> Tensor:
    """Compute with an SVD in fp64 what Muon computes with products only."""
    u, s, v = torch.linalg.svd(x_RC.double(), full_matrices=False)
    if s.max() == 0:
        return torch.zeros_like(x_RC, dtype=torch.float64)
    result: Tensor = u * polynomial(s / s.square().sum().sqrt()) @ v
    return result


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@every_shape
def test_it_changes_the_singular_values_only(shape):
    x_NRC = random(*shape)
    expected = torch.stack([by_singular_values(x_RC) for x_RC in x_NRC])
    assert_within(orthogonalized(x_NRC.double(), torch.float64), expected, SIMPLE)
    assert_within(orthogonalized(x_NRC, torch.float32), expected, COMPLEX)
    assert orthogonalized(x_NRC, torch.bfloat16).dtype == torch.bfloat16


def test_singular_values_end_near_one_whatever_they_were():
    u, v = torch.linalg.qr(random(12, 12).double()).Q, torch.linalg.qr(random(20, 12, seed=1).double()).Q
    for scale in (1e-5, 1.0, 1e6):
        values = torch.logspace(0, -2, 12, dtype=torch.float64) * scale
        after = torch.linalg.svdvals(orthogonalized((u * values @ v.mT)[None], torch.float64)[0])
        assert 0.15 < after.min() < after.max() < 1.1
        assert torch.linalg.svdvals(u * values @ v.mT).min() < 0.011 * scale  # control: they were not near one before


def test_matrices_of_a_stack_do_not_touch_each_other():
    x_NRC = random(3, 6, 10)
    x_NRC[1] *= 1e6
    together = orthogonalized(x_NRC, torch.float32)
    for n in range(3):
        assert_within(together[n], orthogonalized(x_NRC[n : n + 1], torch.float32)[0], SIMPLE)
    # Control: as one matrix [18, 10], the large one would drown out the others.
    assert orthogonalized(x_NRC.flatten(0, 1)[None], torch.float32)[0, :6].norm() < 0.01 * together[0].norm()


def test_a_matrix_of_zeros_stays_zero():
    x_NRC = random(2, 4, 6)
    x_NRC[1] = 0
    assert_within(orthogonalized(x_NRC, torch.float32)[1], torch.zeros(4, 6), EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(128, 64), (32, 128)], ids=str)
def test_of_an_expert_with_one_token_no_update_is_larger_in_half_precision(dtype, shape):
    """The gradient of one token has rank 1: its singular value is the norm, at the edge of where f may be used."""
    rows, columns = shape
    x_NRC = random(60, rows, 1) @ random(60, 1, columns, seed=1)
    longest_N = torch.linalg.matrix_norm(orthogonalized(x_NRC, dtype).float(), ord=2)
    assert 0.9 < longest_N.min() < longest_N.max() < 1.1


@pytest.mark.parametrize("scale", [1e-5, 1e-7, 1e-8])
def test_small_gradients_are_not_lost_in_half_precision(scale):
    """fp16 has no numbers between 0 and 6e-8."""
    x_NRC = random(2, 24, 32) * scale
    exact_NRC = orthogonalized(x_NRC.double(), torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        assert relative_difference(orthogonalized(x_NRC, dtype).double(), exact_NRC) < 0.02
    assert relative_difference(orthogonalized(x_NRC.half().float(), torch.float32).double(), exact_NRC) > (
        0.0 if scale > 1e-6 else 0.1  # control: cast before it is normalized
    )


def optimizer_of(vectors: list[Tensor], momentum: float = MOMENTUM, period: int = 1) -> Muon:
    groups = [{"params": vectors, "weight_decay": DECAY, "period": period, "number": 1}]
    return Muon(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8, momentum=momentum)


def by_formula(weight: Tensor, gradients: list[Tensor], stack: Stack, period: int = 1) -> tuple[Tensor, Tensor]:
    """Compute weight and momentum after the steps, in fp64, by the formulas in optim/muon.py."""
    weight_NRC = weight.double().reshape(stack)
    average_NRC = torch.zeros_like(weight_NRC)
    for number, gradient in enumerate(gradients, start=1):
        g_NRC = gradient.double().reshape(stack)
        average_NRC = MOMENTUM * average_NRC + (1 - MOMENTUM) * g_NRC
        u_NRC = MOMENTUM * average_NRC + (1 - MOMENTUM) * g_NRC
        moves_N = [bool((g_RC != 0).any()) for g_RC in g_NRC]
        step_NRC = torch.stack([by_singular_values(u_RC) * moves for u_RC, moves in zip(u_NRC, moves_N, strict=True)])
        scale = 0.2 * max(stack.rows, stack.columns) ** 0.5
        weight_NRC = (1 - LR * DECAY) * weight_NRC
        if number % period == 0:
            weight_NRC = weight_NRC - period * LR * scale * step_NRC
    return weight_NRC.reshape(weight.shape), average_NRC.reshape(weight.shape)


@pytest.mark.parametrize(
    ("shape", "stack"), [((6, 10), Stack(1, 6, 10)), ((3, 8, 5), Stack(3, 8, 5)), ((3, 8, 5), Stack(6, 4, 5))], ids=str
)
@pytest.mark.parametrize("period", [1, 2, 3])
def test_steps_follow_the_formula(shape, stack, period):
    parameter = nn.Parameter(random(*shape))
    gradients = [random(*shape, seed=seed) for seed in (1, 2, 3, 4)]
    expected, average = by_formula(parameter.detach(), gradients, stack, period)
    optimizer = optimizer_of([parameter], period=period)
    optimizer.lay_out({parameter: whole_parameter(parameter, stack)})
    for number, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient.clone()
        optimizer.param_groups[0]["number"] = number
        optimizer.step()
        assert_within(parameter.grad, gradient, EXACT)
    assert_within(parameter.detach(), expected, SIMPLE)
    assert_within(optimizer.state[parameter]["exp_avg"], average, SIMPLE)
    assert "exp_avg_sq" not in optimizer.state[parameter]


def test_what_is_left_of_the_momentum_does_not_move_an_expert_without_tokens():
    parameter, stack = nn.Parameter(random(3, 8, 5)), Stack(3, 8, 5)
    gradients = [random(3, 8, 5, seed=seed) for seed in range(1, 31)]
    for gradient in gradients[2:]:
        gradient[1] = 0
    expected, _ = by_formula(parameter.detach(), gradients, stack)
    optimizer = optimizer_of([parameter])
    optimizer.lay_out({parameter: whole_parameter(parameter, stack)})
    for number, gradient in enumerate(gradients):
        if number == 2:
            before = parameter.detach().clone()
        parameter.grad = gradient
        optimizer.step()
    assert_within(parameter.detach(), expected, SIMPLE)
    assert_within(parameter.detach()[1], before[1] * (1 - LR * DECAY) ** 28, SIMPLE)


def test_torch_has_the_same_rule(monkeypatch):
    """torch.optim.Muon takes single matrices and multiplies in bf16; with fp32 instead, it agrees."""
    monkeypatch.setattr(
        "torch.optim._muon._zeropower_via_newtonschulz", lambda g, *_: orthogonalized(g[None].clone(), torch.float32)[0]
    )
    ours, theirs = nn.Parameter(random(6, 10)), nn.Parameter(random(6, 10))
    reference = torch.optim.Muon(
        [theirs], lr=LR, weight_decay=DECAY, momentum=MOMENTUM, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    optimizer = optimizer_of([ours])
    optimizer.lay_out({ours: whole_parameter(ours, Stack(1, 6, 10))})
    for seed in (1, 2, 3):
        ours.grad, theirs.grad = random(6, 10, seed=seed), random(6, 10, seed=seed)
        optimizer.step()
        reference.step()
    assert_within(ours.detach(), theirs.detach(), SIMPLE)


def test_what_has_no_layout_is_adamws():
    ours, theirs, matrix = nn.Parameter(random(7)), nn.Parameter(random(7)), nn.Parameter(random(4, 4))
    reference = torch.optim.AdamW([theirs], lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY, fused=True)
    optimizer = optimizer_of([matrix, ours])
    optimizer.lay_out({matrix: whole_parameter(matrix, Stack(1, 4, 4))})
    for seed in (1, 2, 3):
        ours.grad, theirs.grad, matrix.grad = random(7, seed=seed), random(7, seed=seed), random(4, 4, seed=seed)
        optimizer.step()
        reference.step()
    assert_within(ours.detach(), theirs.detach(), EXACT)
    assert_within(optimizer.state[ours]["exp_avg_sq"], reference.state[theirs]["exp_avg_sq"], EXACT)
    assert [group["params"] for group in optimizer.param_groups] == [[matrix, ours]]


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1.0])
def test_a_step_that_the_device_forbids_changes_nothing(bad):
    """found_inf works as in torch's fused AdamW: the host does not wait for it."""
    steps = {}
    for forbids in (None, 0.0, 1.0):
        matrix, gain = nn.Parameter(random(4, 4)), nn.Parameter(random(4))
        optimizer = optimizer_of([matrix, gain])
        optimizer.lay_out({matrix: whole_parameter(matrix, Stack(1, 4, 4))})
        for factor, found_inf in ((1.0, 0.0), (bad, forbids), (1.0, 0.0)):
            matrix.grad, gain.grad = factor * random(4, 4, seed=1), factor * random(4, seed=2)
            if forbids is not None:
                optimizer.found_inf = torch.tensor(found_inf)
            elif found_inf is None and factor != 1.0:
                continue
            optimizer.step()
        steps[forbids] = [matrix.detach(), gain.detach(), optimizer.state[matrix]["exp_avg"]]
    if bad == 1.0:  # allowed: the same step as without found_inf
        for one, other in zip(steps[None], steps[0.0], strict=True):
            assert_within(one, other, EXACT)
        assert not torch.equal(steps[None][0], steps[1.0][0])
    else:  # forbidden: as if the step had not been taken
        for one, other in zip(steps[None], steps[1.0], strict=True):
            assert_within(one, other, EXACT)
        assert not steps[0.0][0].isfinite().all()


class Ranks:
    """Threads that play the ranks of a data-parallel group and sum over them in lockstep."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.barrier = threading.Barrier(number, timeout=30)
        self.given: list[Tensor] = [torch.empty(0)] * number
        self.messages = [0] * number

    def sum_on(self, rank: int) -> Callable[[Tensor], Tensor]:
        def add_up(tensor: Tensor) -> Tensor:
            self.messages[rank] += 1
            self.given[rank] = tensor.clone()
            self.barrier.wait()
            tensor.copy_(torch.stack(self.given).sum(dim=0))
            self.barrier.wait()
            return tensor

        return add_up

    def run(self, action: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = [None] * self.number

        def on(rank: int) -> None:
            try:
                results[rank] = action(rank)
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=on, args=(rank,)) for rank in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        return results


PARAMETERS = [
    ((6, 10), Stack(1, 6, 10)),
    ((5, 4, 6), Stack(5, 4, 6)),
    ((3, 8, 5), Stack(6, 4, 5)),
    ((7, 3), Stack(1, 7, 3)),
]
ENTRIES = sum(torch.Size(shape).numel() for shape, _ in PARAMETERS)


def held_between(parameters: Sequence[tuple[tuple[int, ...], Stack]], begin: int, end: int) -> list[Held]:
    """The parts of the parameters that lie in entries begin..end of their flat vector."""
    offset, held = 0, []
    for shape, stack in parameters:
        numel = torch.Size(shape).numel()
        low, high = max(begin, offset), min(end, offset + numel)
        held.append(Held(stack, low - offset, low - begin, high - low) if low < high else Held(stack, 0, 0, 0))
        offset += numel
    return held


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_cut_into_partitions_it_is_the_same(ranks):
    size = -(-ENTRIES // ranks)
    padding = size * ranks - ENTRIES
    start, *gradients = (torch.nn.functional.pad(random(ENTRIES, seed=seed), (0, padding)) for seed in range(4))
    # In the second step, some matrices have no gradient, and one only in its last entry: one holder sees only zeros.
    for idle in (slice(84, 108), slice(156, 180), slice(200, 219)):
        gradients[1][idle] = 0
    group = Ranks(ranks)

    def on(rank: int) -> tuple[Tensor, Tensor, int]:
        held = held_between(PARAMETERS, rank * size, (rank + 1) * size)
        vector = nn.Parameter(start[rank * size : (rank + 1) * size].clone())
        optimizer = optimizer_of([vector])
        layout = zero_partition(held, group.sum_on(rank), torch.device("cpu"))
        optimizer.lay_out({vector: layout})
        for gradient in gradients:
            vector.grad = gradient[rank * size : (rank + 1) * size].clone()
            optimizer.step()
        return vector.detach(), optimizer.state[vector]["exp_avg"], len(layout.cut)

    weights, averages, cut = zip(*group.run(on), strict=True)
    begin = 0
    for shape, stack in PARAMETERS:
        end = begin + torch.Size(shape).numel()
        mine = [vector[begin:end].reshape(shape) for vector in (start, *gradients)]
        expected, average = by_formula(mine[0], mine[1:], stack)
        assert_within(torch.cat(weights)[begin:end].reshape(shape), expected, SIMPLE)
        assert_within(torch.cat(averages)[begin:end].reshape(shape), average, SIMPLE)
        begin = end
    # One message when the layout is made, and one per step for all cut matrices: at most one matrix per border.
    assert len(set(cut)) == 1
    assert cut[0] <= ranks - 1
    assert set(group.messages) == {1 + 3 * (cut[0] > 0)}
    assert ranks == 1 or cut[0] > 0


def test_a_cut_matrix_is_not_two_matrices():
    """Negative control: without the sum over the holders, each rank would orthogonalize only the part it holds."""

    def halves(sum_on: Callable[[Ranks, int], Callable[[Tensor], Tensor]]) -> Tensor:
        group = Ranks(2)

        def on(rank: int) -> Tensor:
            held = held_between([((6, 10), Stack(1, 6, 10))], 30 * rank, 30 * rank + 30)
            vector = nn.Parameter(torch.zeros(30))
            optimizer = optimizer_of([vector])
            layout = zero_partition(held, group.sum_on(rank), torch.device("cpu"))
            optimizer.lay_out({vector: layout._replace(sum_over_holders=sum_on(group, rank))})
            vector.grad = random(60)[30 * rank : 30 * rank + 30]
            optimizer.step()
            return vector.detach()

        return torch.cat(group.run(on)).view(6, 10)

    whole, _ = by_formula(torch.zeros(6, 10), [random(60).view(6, 10)], Stack(1, 6, 10))
    assert_within(halves(Ranks.sum_on), whole, SIMPLE)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(halves(lambda group, rank: lambda tensor: tensor), whole, SIMPLE)


def test_which_parameters_are_hidden_matrices():
    run = RunConfig.model_validate({
        "model": {"tie_embeddings": False, "bias": True, "norm": "layernorm", "position": "learned", "num_layers": 2},
        "moe": {"num_experts": 4, "every_n_layers": 2, "noisy_gating": True},
    })  # fmt: skip
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Decoder(run).named_parameters()}
    stacks = {name: hidden_matrices(name, shape, run.model.intermediate_size) for name, shape in shapes.items()}
    attention = {f"blocks.{i}.attention.{p}_proj.weight": Stack(1, 128, 128) for i in range(2) for p in "qkvo"}
    assert {name: stack for name, stack in stacks.items() if stack is not None} == {
        **attention,
        "blocks.0.ffn.gate_up_proj.weight": Stack(2, 256, 128),
        "blocks.0.ffn.down_proj.weight": Stack(1, 128, 256),
        "blocks.1.ffn.experts.gate_up_proj": Stack(8, 256, 128),
        "blocks.1.ffn.experts.down_proj": Stack(4, 128, 256),
    }
    assert hidden_matrices("blocks.0.ffn.experts.gate_up_proj", torch.Size([4, 256, 128]), 256) == Stack(4, 256, 128)


def test_the_polynomials_are_the_best_for_what_the_last_one_leaves():
    """Each is a minimax fit of degree five by iterated reweighting, over the range of values of the previous one."""
    low, high = 0.02, 1.0
    for expected in _COEFFICIENTS:
        s = torch.unique(torch.cat([torch.linspace(low, high, 1500), torch.logspace(*np.log10([low, high]), 1500)]))
        powers = torch.stack([s, s**3, s**5], 1).double()
        weight = torch.full_like(powers[:, 0], 1 / len(s))
        for _ in range(3000):
            root = weight.sqrt()[:, None]
            fit = torch.linalg.lstsq(powers * root, root).solution[:, 0]
            weight *= (1 - powers @ fit).abs() + 1e-12
            weight /= weight.sum()
        assert_within(torch.tensor(expected, dtype=torch.float64), fit, 1e-3)
        low, high = float((powers @ fit).min()), float((powers @ fit).max())


def test_products_in_bf16_move_the_weights_alike():
    weights = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = nn.Parameter(random(24, 32))
        optimizer = Muon(
            [{"params": [parameter], "weight_decay": 0.0, "period": 1, "number": 1}], LR, (0.9, 0.95), 1e-8, 0.9, dtype
        )
        optimizer.lay_out({parameter: whole_parameter(parameter, Stack(1, 24, 32))})
        parameter.grad = random(24, 32, seed=1)
        optimizer.step()
        weights.append(parameter.detach() - random(24, 32))
    assert relative_difference(*weights) == pytest.approx(0, abs=0.02)
    assert relative_difference(*weights) > 1e-4  # control: bf16 was really used
