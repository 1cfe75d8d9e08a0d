"""The figures reported for a step, against brute force: gradient norms by part, routers by layer, times."""

import math

import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines import step as steps
from storyteller_ds.engines.gradient_norm import PARTS, part_norms, part_of
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.engines.step_clock import StepClock
from storyteller_ds.model.loss import MicroBatchStats
from tests.support.small_engine import LR, SETTINGS, batch, make_engine


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.0.ffn.router.weight", "router"),
        ("blocks.0.ffn.router.noise_weight", "router"),
        ("blocks.3.ffn.experts.gate_up_proj", "experts"),
        ("blocks.3.ffn.gate_up_proj.weight", "rest"),
        ("embedding.weight", "rest"),
    ],
)
def test_the_part_of_a_parameter(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_gradient_norms_of_the_parts(dtype, monkeypatch):
    engine, twin = make_engine(dtype), make_engine(dtype)
    result = steps.train_step(engine, [batch(0), batch(1)], LR)
    # Keep the gradients, which a step discards; those of an fp16 step are multiplied by the scale.
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_, **__):
        gradients.update({name: p.grad.clone() for name, p in twin.decoder.named_parameters()})

    monkeypatch.setattr(steps, "update", keep)
    scale = twin.loss_scale.scale if twin.loss_scale else 1.0
    twin.begin_step([batch(0), batch(1)], LR)
    squares = dict.fromkeys(PARTS, 0.0)
    for name, gradient in gradients.items():
        kind = "router" if "router" in name else "experts" if "experts" in name else "rest"
        squares[kind] += sum((x / scale) ** 2 for x in gradient.double().flatten().tolist())
    assert result.part_norms == pytest.approx({part: math.sqrt(total) for part, total in squares.items()}, rel=1e-9)
    assert math.hypot(*result.part_norms.values()) == pytest.approx(
        result.grad_norm, rel=1e-6 if dtype == "fp16" else 1e-9
    )


def test_a_dense_model_has_one_part():
    run = RunConfig.model_validate({**SETTINGS, "moe": {"num_experts": 0}})
    result = steps.train_step(SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu")), [batch(0)], LR)
    assert result.part_norms == {"rest": pytest.approx(result.grad_norm, rel=1e-12)}
    assert (result.router, result.router_layers) == (None, ())


def test_no_pieces_no_norms():
    assert part_norms([], ()) == {}


def test_a_step_has_forward_backward_and_optimizer_within_its_own_time():
    engine = make_engine("fp32")
    clock = StepClock(torch.device("cpu"))
    result = steps.train_step(engine, [batch(0), batch(1)], LR)
    clock.ended("all")
    assert result.seconds.keys() == {"forward", "backward", "optimizer"}
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert sum(result.seconds.values()) <= clock.seconds()["all"]


def test_parts_that_come_again_are_added(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = StepClock(torch.device("cpu"))
    for part in ("forward", "backward", "forward", "optimizer"):
        clock.ended(part)
    assert clock.seconds() == {"forward": 4.0, "backward": 2.0, "optimizer": 4.0}


def stats(count_LE: list[list[int]], scale: float) -> MicroBatchStats:
    count = torch.tensor(count_LE).double()
    one_L = torch.ones(len(count), dtype=torch.float64) * scale
    one_L[0] *= 2
    return MicroBatchStats(
        torch.tensor(8.0).double(), count, count / 8, 1.1 * one_L, 0.2 * one_L, 0.6 * one_L, 0.3 * one_L
    )


def test_routers_by_layer_and_all_together():
    """Two layers, four experts, two accumulation steps of eight routed tokens each."""
    two = [stats([[8, 0, 0, 0], [2, 2, 2, 2]], 1.0), stats([[4, 4, 0, 0], [0, 4, 2, 2]], 3.0)]
    (result,) = steps.finished([steps.known(1.0, 1.0, False, None, two)])
    first, second = result.router_layers
    assert first.expert_load == [0.75, 0.25, 0.0, 0.0]
    assert second.expert_load == [0.125, 0.375, 0.25, 0.25]
    assert (first.expert_load_max_over_mean, second.expert_load_max_over_mean) == (3.0, 1.5)
    spread = math.sqrt((0.5**2 + 0 + 0.25**2 + 0.25**2) / 4) / 0.25
    assert first.expert_load_cv == pytest.approx(spread)
    assert (first.dead_experts, second.dead_experts) == (2, 0)
    assert (first.balance_loss, second.balance_loss) == pytest.approx((4.4, 2.2))
    assert (first.z_loss, first.router_entropy, first.router_margin) == pytest.approx((0.8, 2.4, 1.2))
    whole = result.router
    assert whole.dead_experts == 2
    assert whole.expert_load == [0.4375, 0.3125, 0.125, 0.125]
    assert whole.expert_load_cv == pytest.approx((first.expert_load_cv + second.expert_load_cv) / 2)
    assert (whole.router_margin, whole.balance_loss, whole.expert_load_max_over_mean) == pytest.approx((0.9, 3.3, 2.25))


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_margin_of_a_real_batch(top_k):
    run = RunConfig.model_validate({**SETTINGS, "moe": {"num_experts": 4, "top_k": top_k}})
    engine = SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu"))
    with torch.no_grad():
        for block in engine.decoder.blocks:
            block.ffn.router.weight.mul_(40)  # undecided routers have hardly any margin
    _, layers = engine.decoder(batch(0).token_BS)
    expected = [sum(sorted(row)[-1] - sorted(row)[-2] for row in layer.prob_TE.tolist()) / 16 for layer in layers]
    result = steps.train_step(engine, [batch(0)], LR)
    assert [layer.router_margin for layer in result.router_layers] == pytest.approx(expected, rel=1e-5)
    assert result.router.router_margin == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert max(expected) > 0.01
