"""The figures of the benchmarks: rounds, goals, operation counts, and tables derived from the records."""

import json
import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operations import flops, limits, moe_problem, readme, timing
from benchmarks.operations.case import Case, Step
from benchmarks.operations.decoder_reference import DecoderReference
from benchmarks.operations.goals import Goal, judge
from benchmarks.operations.ops import expert_mlp, moe_layer, training_step
from benchmarks.size_transfer import BOUND, RECORDS, SIZES, SMALLEST, best_rate, rate_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def case_in(dtype: torch.dtype) -> Case:
    return moe_layer.case(moe_problem.MoEShape(32, 16, 8, 4, 2), dtype, CPU, "tiny")


def test_the_tolerance_in_half_precision_is_that_of_the_roundings():
    assert case_in(torch.float32).tolerances == (1e-5, 1e-4)
    assert case_in(torch.bfloat16).tolerances == (5 / 256, 8 / 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_token_of_a_problem_is_nearly_tied(dtype):
    shape = moe_problem.MoEShape(T=300, D=16, I=4, E=8, K=2)
    problem = moe_problem.draw(shape, dtype, CPU)
    assert not len(moe_problem.nearly_tied(problem.x_TD, problem.router_ED, 2, moe_problem.MARGIN[dtype]))
    # Control: in plain random tokens there are some.
    assert len(moe_problem.nearly_tied(torch.randn(300, 16), problem.router_ED, 2, 0.05))


def test_rounds_are_interleaved_and_preparation_is_not_timed(monkeypatch):
    now, calls = [0.0], []

    def passes(name: str, seconds: float) -> Any:
        def call(prepared: Any = None) -> str:
            now[0] += seconds
            calls.append((name, prepared))
            return name

        return call

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    steps = {"a": Step(passes("a", 2.0), passes("prepare a", 50.0)), "b": Step(passes("b", 3.0))}
    times = timing.interleaved(steps, rounds=4, device=CPU, warm_up=1)
    assert times["a"] == (2.0, 2.0, 2.0, 4)
    assert times["b"].median == 3.0
    a = [("prepare a", None), ("a", "prepare a")]
    assert calls == [*a, ("b", None), ("b", None), *a, *a, ("b", None), ("b", None), *a, *a, ("b", None)]


def test_on_a_gpu_nothing_but_the_step_is_between_the_events(monkeypatch):
    events: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            events.append("event")

        def elapsed_time(self, other: object) -> float:
            assert events[-1] == "synchronize", "read before the device is done"
            return 1500.0

    def says(what: str) -> Any:
        return lambda *_, **__: events.append(what)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", says("synchronize"))
    monkeypatch.setattr(timing, "FLUSH_BYTES", 8)
    monkeypatch.setattr(Tensor, "zero_", says("flush"))
    steps = {"a": Step(says("a"), says("prepare a")), "b": Step(says("b"))}
    assert list(timing._rounds_on_cuda(steps, 1, CPU)) == [{"a": 1.5, "b": 1.5}]
    assert events == ["prepare a", "flush", "event", "a", "event", "flush", "event", "b", "event", "synchronize"]


def test_median_and_quartiles():
    assert timing.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0, 5)
    assert timing.spread([7.0]) == (7.0, 7.0, 7.0, 1)


def row(implementation: str, role: str, median_s: float | None, **more: Any) -> dict[str, Any]:
    fields = {"op": "op", "case": "c", "direction": "forward", "compared": True, "why": "", "of_limit": {}, "ok": True}
    return {
        **fields,
        "implementation": implementation,
        "role": role,
        "median_s": median_s,
        "tokens_per_s": None,
        **more,
    }


def test_goals_are_ratios_to_the_best_peer_or_to_the_limit():
    ours = row("ours", "ours", 2.0, of_limit={"copy": 0.85})
    rows = [
        ours,
        row("A fast", "peer", 3.0),
        row("A slow", "peer", 9.0),
        row("B", "peer", 2.5),
        row("B drops", "peer", 0.1, compared=False),
        row("A wrong", "peer", None, ok=False),
        row("reference", "baseline", 0.2),
    ]
    best_a, best, share, absent, no_limit = judge(
        [
            Goal("1.5x A", "op", "forward", 1.5, peers=("A",)),
            Goal("best", "op", "forward", 1.3, peers=("",)),
            Goal("share", "op", "forward", 0.9, limit="copy"),
            Goal("absent", "op", "forward", 1.0, peers=("C",)),
            Goal("no such limit", "op", "forward", 1.0, limit="bmm"),
        ],
        rows,
    )
    assert (best_a.measured, best_a.met, best_a.against, best_a.why) == (1.5, True, "A fast", "")
    (partly,) = judge([Goal("of two", "op", "forward", 1.5, peers=("A", "C"))], rows)
    assert (partly.met, partly.why) == (True, "without C")
    assert (best.measured, best.met, best.against) == (1.25, False, "B")
    assert (share.measured, share.met) == (0.85, False)
    assert (absent.measured, absent.met, absent.why) == (None, None, "no such peer has a time")
    assert (no_limit.met, no_limit.why) == (None, "bmm was not measured")
    (red,) = judge([Goal("share", "op", "forward", 0.1, limit="copy")], [{**ours, "median_s": None, "why": "wrong: y"}])
    assert (red.met, red.why) == (None, "ours has no time: wrong: y")
    assert judge([Goal("elsewhere", "op", "backward", 1.0, limit="copy")], rows) == []
    with pytest.raises(ValueError, match="either a limit or peers"):
        Goal("neither", "op", "forward", 1.0)


def test_the_flops_of_a_step_are_those_that_torch_counts():
    # No two sizes are equal, and there are enough layers to see a factor.
    shape = flops.DecoderShape(3, 16, 12, 6, 2, heads=8, kv_heads=4, vocabulary=50, sequence=10, batch=5)
    problem = training_step.draw(shape)
    leaves = {name: tensor.double().requires_grad_() for name, tensor in problem.weights.items()}
    reference = DecoderReference(shape, leaves, 1e-5, 10_000.0)
    with FlopCounterMode(display=False) as counter:
        reference.loss(problem.token_BS, problem.target_BS).backward()
    ours = flops.step_flops(shape)
    # The reference computes all scores and masks those of the future.
    whole = {**ours, "attention scores": ours["attention scores"] * 2 * shape.sequence / (shape.sequence + 1)}
    assert counter.get_total_flops() == sum(whole.values())


def test_the_flops_of_a_step_are_those_of_the_model():
    from storyteller_ds.config import load_config
    from storyteller_ds.model import flops_per_token

    shape = training_step.SHAPES["cpu"]
    run_ = load_config(overrides=training_step.overrides(shape)).run
    assert sum(flops.step_flops(shape).values()) == flops_per_token(run_) * shape.tokens


def test_the_limits_do_the_work_that_they_are_credited_with():
    bmm = limits.bare_bmm(24, 8, 6, 4, torch.float32, CPU)
    product, *_ = limits.matrix_products([(3, 4, 5)], torch.float32, CPU)
    for limit in (bmm, product):
        for step in limit.steps:
            with FlopCounterMode(display=False) as counter:
                step.step.run(None)
            assert counter.get_total_flops() == step.amount
    (copied,) = limits.copy(4000, torch.float32, CPU).steps
    assert copied.amount == 8000


def test_the_experts_case_has_the_rows_of_the_router():
    (case,) = expert_mlp.cases("tiny", CPU)
    assert case.shape["N"] == 64
    assert case.work["forward+backward"]["bare bmm"] == 3 * flops.expert_flops(64, 16, 8)


def result(
    date: str, commit: str, ours: float, device: str = "Some CPU", suite: str = "cpu", instructions: str = "AVX9"
) -> dict[str, Any]:
    of_case = {"op": "moe_layer", "case": "c1", "direction": "forward+backward"}
    rows = [
        row("ours", "ours", ours, of_limit={"bare bmm": 1 / ours}, **of_case),
        row("stock", "peer", 3.0, **of_case),
        row("stock, capacity 1", "peer", 1.0, **{**of_case, "compared": False}),
    ]
    goal = {**of_case, "goal": "1.5x", "at_least": 1.5, "measured": 3.0 / ours, "against": "stock", "why": ""}
    return {
        **{"instruction_set": instructions if suite == "cpu" else None},
        **{"suite": suite, "device": device, "threads": 2, "versions": {"torch": "2.13", "liger": None}},
        **{"commit": commit, "dirty": False, "date": date, "kernels": {"backend": "reference", "reason": "a test"}},
        **{"results": rows, "goals": [goal]},
    }


def test_the_tables_have_the_newest_commit_and_the_median_of_its_runs():
    old = result("2026-01-01", "old", 0.5)
    runs = [result(f"2026-01-0{day}", "new", ours) for day, ours in ((2, 1.0), (3, 2.5), (4, 1.5))]
    gpu = result("2026-01-01", "gpucommit", 0.001, "NVIDIA H200", "gpu")
    chosen = readme.newest_runs([runs[1], old, gpu, runs[0], runs[2]])
    assert [(one.newest["device"], len(one.records)) for one in chosen] == [("Some CPU", 3), ("NVIDIA H200", 1)]
    text = readme.measured(chosen[:1])
    assert "| moe_layer c1 | forward+backward | 1.5 s | 0.67 of bare bmm | stock | 2.00x as fast | new |" in text
    assert "| moe_layer, c1, forward+backward | 1.5x | 2.000 (stock) | met |" in text
    assert "medians over 3 runs" in text
    assert "GPU: not yet measured" in text
    of_experts = readme.measured_of("expert_mlp", chosen)
    assert "| NVIDIA H200 | moe_layer c1 | forward+backward | 1 ms |" in of_experts
    assert "not yet measured" not in of_experts
    assert readme.measured_of("rms_norm", []).count("not yet measured") == 2


def test_machines_of_one_name_are_told_apart_by_their_instructions():
    """A name like AMD EPYC covers machines with and without AVX-512, so old figures stay beside new ones."""
    new = result("2026-01-02", "new", 1.0, instructions="AVX10")
    chosen = readme.newest_runs([result("2026-01-01", "old", 2.0), new])
    assert [one.machine for one in chosen] == ["Some CPU, AVX10", "Some CPU, AVX9"]
    text = readme.measured(chosen)
    assert "### Some CPU, AVX10 (CPU)" in text
    assert "### Some CPU, AVX9 (CPU)" in text
    of_experts = readme.measured_of("expert_mlp", chosen)
    assert "| Some CPU, AVX10 | moe_layer c1 | forward+backward | 1 s |" in of_experts
    assert "| Some CPU, AVX9 | moe_layer c1 | forward+backward | 2 s |" in of_experts


def test_a_goal_at_the_border_is_met_and_below_it_is_not():
    table = readme.measured(readme.newest_runs([result("2026-01-01", "c", 2.0)]))
    assert "1.500 (stock) | met" in table
    table = readme.measured(readme.newest_runs([result("2026-01-01", "c", 2.001)]))
    assert "1.499 (stock) | not met" in table


def test_ours_without_a_time_is_said_in_the_table():
    wrong = result("2026-01-01", "c", 1.0)
    wrong["results"][0] |= {"median_s": None, "why": "wrong: y: difference 1", "of_limit": {}}
    wrong["goals"][0] |= {"measured": None, "why": "ours has no time"}
    table = readme.measured(readme.newest_runs([wrong]))
    assert "| wrong: y: difference 1 |" in table
    assert "not measured: ours has no time" in table


def test_writing_the_tables_twice_changes_nothing(tmp_path):
    kernels, results = tmp_path / "kernels", tmp_path / "results"
    results.mkdir()
    (results / "one.json").write_text(json.dumps(result("2026-01-01", "c", 2.0)), encoding="utf-8")
    for folder in readme.OPS_OF_README:
        (kernels / "storyteller_kernels" / folder).mkdir(parents=True)
        (kernels / "storyteller_kernels" / folder / "README.md").write_text(f"# {folder}\n", encoding="utf-8")
    head, tail = "# Kernels\n\nBefore.\n\n", "\n\nAfter.\n"
    (kernels / "README.md").write_text(f"{head}{readme.BEGIN}\nstale\n{readme.END}{tail}", encoding="utf-8")
    assert len(readme.write(kernels, results)) == 1 + len(readme.OPS_OF_README)
    assert readme.write(kernels, results) == []
    text = (kernels / "README.md").read_text(encoding="utf-8")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert "stale" not in text
    assert "1.500 (stock)" in text
    # A README that had no place for the tables got one.
    assert "## Measured" in (kernels / "storyteller_kernels/expert_mlp/README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="but not"):
        readme.between_markers(f"{readme.BEGIN}\n", "")


def test_the_readmes_of_this_checkout_are_up_to_date():
    for path, wanted in readme.readmes(readme.KERNELS, readme.RESULTS).items():
        assert path.read_text(encoding="utf-8") == wanted, f"{path} is old; run: {readme.COMMAND}"


def test_the_best_rate_is_the_lowest_point_of_the_losses():
    valley = {f"{rate}": {"0": 1.3 + 0.05 * math.log(rate / 0.008) ** 2} for rate in (0.003, 0.005, 0.01, 0.02)}
    valley["0.02"]["1"] = valley["0.02"]["0"]
    assert best_rate(valley) == pytest.approx(0.008)
    with pytest.raises(ValueError, match="do not rise on both sides"):
        best_rate({rate: {seed: 2.6 - bpb for seed, bpb in seeds.items()} for rate, seeds in valley.items()})


def test_the_rates_of_the_sizes_are_those_whose_transfer_was_measured():
    """Whoever changes the rule of model.size has to measure again."""
    files = [*RECORDS.glob("*.json")]
    assert files
    for record in (json.loads(file.read_text(encoding="utf-8")) for file in files):
        multiple = {size: best_rate(record["bits_per_byte"][size]) / rate_of(size) for size in SIZES}
        assert multiple == pytest.approx(record["best_multiple"])
        assert all(1 / BOUND <= each / multiple[SMALLEST] <= BOUND for each in multiple.values())
