"""The comparison detects every kind of difference and names the tensor."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from storyteller_ds.certify.compare import Difference, Results, compare, read_results, write_rank
from storyteller_ds.certify.rows import Tolerances
from storyteller_ds.records.run_folder import METRICS
from storyteller_ds.records.trained_run import TrainedRun
from tests.unit.certify.conftest import train_record

TOLERANCE = Tolerances.same(1e-5)


def scaled(results: Results, name: str, scale: float) -> Results:
    return dataclasses.replace(results, weights={**results.weights, name: results.weights[name] * scale})


def test_the_same_results_do_not_differ(results: Results):
    difference = compare(results, results)
    assert difference.problem(Tolerances.same(0.0)) is None
    assert difference.by_weight == dict.fromkeys(results.weights, 0.0)


@pytest.mark.parametrize("scale", [1.01, math.nan])
def test_the_first_tensor_that_differs_is_named(scale: float, results: Results):
    ours = scaled(scaled(results, "final_norm", 2.0), "blocks.0.router", scale)
    difference = compare(ours, results)
    problem = difference.problem(TOLERANCE)
    assert problem is not None
    assert "first tensor that differs: blocks.0.router" in problem
    assert difference.first_weight_beyond(1.5) == (None if scale == 1.01 else "blocks.0.router")
    # The measure is relative: a difference of 1 % is 0.01.
    if scale == 1.01:
        assert difference.by_weight["blocks.0.router"] == pytest.approx(0.01, rel=1e-4)


def test_within_the_tolerance_is_no_problem(results: Results):
    ours = scaled(results, "embedding", 1 + 5e-6)
    assert compare(ours, results).problem(TOLERANCE) is None
    assert compare(ours, results).problem(Tolerances.same(1e-6)) is not None


def with_number(results: Results, step: int, field: str, value: float | None) -> Results:
    records = [dict(record) for record in results.records]
    records[step][field] = value
    return dataclasses.replace(results, records=records)


@pytest.mark.parametrize(
    ("field", "quantity"),
    [
        ("train_loss", "loss"),
        ("grad_norm", "grad_norm"),
        ("balance_loss", "router"),
        ("z_loss", "router"),
        ("router_entropy", "router"),
    ],
)
@pytest.mark.parametrize("step", [0, 2])
def test_every_number_of_every_step_counts(field: str, quantity: str, step: int, results: Results):
    ours = with_number(results, step, field, results.records[step][field] * 1.001)
    difference = compare(ours, results)
    numbers = dict(difference.largest)
    assert numbers.pop(quantity) == pytest.approx(0.001, rel=1e-6)
    assert set(numbers.values()) == {0}
    assert difference.problem(TOLERANCE) == (
        f"largest difference 1.0e-03 ({quantity}), allowed 1e-05; every weight tensor agrees"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_number_that_is_not_finite_is_a_difference(value: float | None, results: Results):
    assert compare(with_number(results, 0, "train_loss", value), results).problem(TOLERANCE) is not None


@pytest.mark.parametrize("field", ["loss", "grad_norm", "router", "weights", "logits"])
@pytest.mark.parametrize("value", [1e-3, math.nan])
def test_the_largest_difference_is_named_whichever_it_is(field: str, value: float, results: Results):
    same = compare(results, results)
    difference: Difference = dataclasses.replace(same, largest={**same.largest, field: value})
    problem = difference.problem(TOLERANCE)
    assert problem is not None
    assert f"largest difference {value:.1e} ({field})" in problem


def test_each_quantity_has_a_tolerance_of_its_own(results: Results):
    ours = with_number(results, 0, "train_loss", results.records[0]["train_loss"] * 1.001)
    assert compare(ours, results).problem(TOLERANCE._replace(loss=0.002)) is None
    assert compare(ours, results).problem(Tolerances.same(0.002)._replace(loss=1e-5)) is not None


def test_logits_count(results: Results):
    logits_BSV = results.logits_BSV.clone()
    logits_BSV[1, 2, 4] += 1
    problem = compare(dataclasses.replace(results, logits_BSV=logits_BSV), results).problem(TOLERANCE)
    assert problem is not None
    assert "(logits)" in problem
    # Half of a batch does not match the whole batch.
    half = dataclasses.replace(results, logits_BSV=results.logits_BSV[:1])
    assert compare(half, results).largest["logits"] == math.inf


def test_missing_steps_and_tensors_are_infinitely_far(results: Results):
    short = dataclasses.replace(results, records=results.records[:-1])
    assert compare(short, results).largest["loss"] == math.inf
    fewer = dataclasses.replace(results, weights={k: v for k, v in results.weights.items() if k != "embedding"})
    assert compare(fewer, results).first_weight_beyond(1e-5) == "embedding"
    assert compare(results, fewer).first_weight_beyond(1e-5) == "embedding"


def test_what_a_run_and_its_ranks_have_written_is_put_together(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Validation results are records, too.
    records = [train_record(6.0, 1.0, seconds) for seconds in (9.0, 0.1, 0.3, 0.2)] + [{"val_loss": 5.0}]
    (tmp_path / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    stored = {name: results.weights[name] for name in sorted(results.weights)}
    checkpoint = SimpleNamespace(open_tensors={"weights": stored}.__getitem__)
    monkeypatch.setattr("storyteller_ds.certify.compare.open_checkpoint", lambda folder: checkpoint)
    for rank in range(2):
        write_rank(
            tmp_path,
            rank,
            sent_bytes=torch.tensor(2**40 + rank),
            peak_memory_bytes=torch.tensor(2**40 + rank),
            logits_BSV=results.logits_BSV[rank : rank + 1],
        )
    back = read_results(TrainedRun(tmp_path, 4, finished=tmp_path), 2, results.weights)
    assert torch.equal(back.logits_BSV, results.logits_BSV)
    assert list(back.weights) == list(results.weights), "in the order asked for"
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in results.weights.items())
    assert back.sent_bytes == 2**41 + 1
    assert back.peak_memory_bytes == 2**40 + 1
    assert len(back.records) == 5
    # The first step is warm-up.
    assert back.step_time_s == 0.2
