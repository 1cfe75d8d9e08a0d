"""The comparison sees every kind of difference, and names the tensor."""

import dataclasses
import math

import pytest
import torch

from storyteller_ds.certify.compare import compare, relative_difference
from storyteller_ds.certify.results import RankReport, Results, StepNumbers, read_results, write_rank
from storyteller_ds.certify.traffic import Traffic

TOLERANCE = 1e-5


def scaled(results: Results, name: str, scale: float) -> Results:
    return dataclasses.replace(results, weights={**results.weights, name: results.weights[name] * scale})


def test_the_same_results_do_not_differ(results: Results):
    difference = compare(results, results)
    assert difference.largest()[1] == 0
    assert difference.complaint(0.0) is None


@pytest.mark.parametrize("scale", [1.01, math.nan])
def test_the_first_tensor_that_differs_is_named(scale: float, results: Results):
    ours = scaled(scaled(results, "final_norm", 2.0), "blocks.0.router", scale)
    difference = compare(ours, results)
    complaint = difference.complaint(TOLERANCE)
    assert complaint is not None
    assert "first tensor that differs: blocks.0.router" in complaint
    assert difference.first_weight_beyond(1.5) == (None if scale == 1.01 else "blocks.0.router")
    # A difference of 1 % is 0.01: the measure is relative.
    if scale == 1.01:
        assert difference.by_weight["blocks.0.router"] == pytest.approx(0.01, rel=1e-4)


def test_within_the_tolerance_is_no_complaint(results: Results):
    ours = scaled(results, "embedding", 1 + 5e-6)
    assert compare(ours, results).complaint(TOLERANCE) is None
    assert compare(ours, results).complaint(1e-6) is not None


@pytest.mark.parametrize(
    ("field", "quantity"),
    [
        ("loss", "loss"),
        ("grad_norm", "gradient norm"),
        ("balance_loss", "router losses"),
        ("z_loss", "router losses"),
        ("router_entropy", "router losses"),
    ],
)
@pytest.mark.parametrize("step", [0, 2])
def test_every_number_of_every_step_counts(field: str, quantity: str, step: int, results: Results):
    steps = list(results.steps)
    steps[step] = dataclasses.replace(steps[step], **{field: getattr(steps[step], field) * 1.001})
    difference = compare(dataclasses.replace(results, steps=steps), results)
    assert difference.largest() == (quantity, pytest.approx(0.001, rel=1e-6))
    complaint = difference.complaint(TOLERANCE)
    assert complaint is not None
    assert "every weight tensor agrees" in complaint


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_a_difference(value: float, results: Results):
    steps = [dataclasses.replace(results.steps[0], loss=value), *results.steps[1:]]
    assert compare(dataclasses.replace(results, steps=steps), results).complaint(TOLERANCE) is not None


def test_logits_count(results: Results):
    logits_BSV = results.logits_BSV.clone()
    logits_BSV[1, 2, 4] += 1
    assert compare(dataclasses.replace(results, logits_BSV=logits_BSV), results).largest()[0] == "logits"
    # Half of the batch is not the batch.
    half = dataclasses.replace(results, logits_BSV=results.logits_BSV[:1])
    assert compare(half, results).logits == math.inf


def test_missing_steps_and_tensors_are_infinitely_far(results: Results):
    short = dataclasses.replace(results, steps=results.steps[:-1])
    assert compare(short, results).loss == math.inf
    fewer = dataclasses.replace(results, weights={k: v for k, v in results.weights.items() if k != "embedding"})
    assert compare(fewer, results).first_weight_beyond(TOLERANCE) == "embedding"
    assert compare(results, fewer).first_weight_beyond(TOLERANCE) == "embedding"


def test_relative_difference_against_its_definition():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(7, 3, generator=generator), torch.randn(7, 3, generator=generator)
    pairs = list(zip(a.double().flatten().tolist(), b.double().flatten().tolist(), strict=True))
    expected = math.sqrt(sum((x - y) ** 2 for x, y in pairs)) / math.sqrt(sum(y**2 for _, y in pairs))
    assert relative_difference(a, b) == pytest.approx(expected, rel=1e-12)
    assert relative_difference(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_difference(a, torch.zeros(7, 3)) > 1
    assert relative_difference(a, b.t()) == math.inf


def test_results_come_back_as_they_were_written(results: Results, tmp_path):
    for rank in range(2):
        report = RankReport(
            steps=[StepNumbers(6.0, 1.0, 1.1, 0.2, 2.0)],
            step_times_s=[9.0, 0.1, 0.3, 0.2],
            peak_memory_bytes=100 + rank,
            traffic=Traffic(10 * (rank + 1), rank),
            weight_names=list(results.weights) if rank == 0 else [],
            smallest_margin=None,
        )
        weights = results.weights if rank == 0 else {}
        write_rank(tmp_path, rank, report, results.logits_BSV[rank : rank + 1], weights)
    back = read_results(tmp_path, 2)
    assert torch.equal(back.logits_BSV, results.logits_BSV)
    assert list(back.weights) == list(results.weights)
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in results.weights.items())
    assert back.traffic == Traffic(30, 1)
    assert back.peak_memory_bytes == 101
    # The first step is warm-up.
    assert back.step_time_s == 0.2
