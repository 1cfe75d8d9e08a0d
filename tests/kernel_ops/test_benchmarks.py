"""The benchmark command: wrong results have no time, what is missing is named, and the record is complete."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.operations import readme, record
from benchmarks.operations.case import Size
from benchmarks.operations.measure import measure
from benchmarks.operations.ops import moe_layer, rms_norm, routing
from benchmarks.operations.suite import OPS, main

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY: Size = "tiny"
MACHINE = {
    "format",
    "suite",
    "device",
    "instruction_set",
    "threads",
    "python",
    "versions",
    "commit",
    "dirty",
    "date",
    "kernels",
    "rounds",
}
ROW = {
    *("op", "case", "shape", "direction", "implementation", "role", "ok", "why", "note", "compared", "median_s"),
    *("q1_s", "q3_s", "rounds", "of_limit", "work", "details", "tokens_per_s", "peak_bytes"),
}


def run(out: Path, *ops: str) -> tuple[int, dict[str, Any]]:
    """Run the command on tiny shapes; return its exit code and the record it wrote."""
    code = main(["--suite", "cpu", "--op", *ops, "--rounds", "2", "--out", str(out)], size=TINY)
    return code, json.loads(out.read_text(encoding="utf-8"))


def rows_of(written: dict[str, Any], implementation: str) -> list[dict[str, Any]]:
    rows = [row for row in written["results"] if row["implementation"] == implementation]
    assert rows
    return rows


def test_the_record_has_all_that_a_later_reader_needs(tmp_path, capsys):
    code, written = run(tmp_path / "record.json", "rms_norm", "permute", "cross_entropy")
    assert code == 0
    assert written.keys() == {*MACHINE, "results", "goals"}
    assert written["versions"]["torch"] == torch.__version__
    assert written["kernels"]["backend"]
    assert {row["op"] for row in written["results"]} == {"rms_norm", "permute", "cross_entropy"}
    for row in written["results"]:
        assert row.keys() - {"rate", "unit"} == ROW
        if row["role"] == "limit":
            assert row["rate"] > 0
            continue
        assert (row["ok"] is True) == (row["median_s"] is not None), row
        if row["ok"]:
            assert 0 < row["q1_s"] <= row["median_s"] <= row["q3_s"]
            assert row["rounds"] == 2
            assert all(share > 0 for share in row["of_limit"].values())
        else:
            assert row["why"].startswith("not ")
    assert "of copy" in capsys.readouterr().out


@pytest.mark.parametrize("op", ["moe_layer", "expert_mlp", "routing"])
def test_all_that_is_installed_agrees_with_the_reference(op):
    (case,) = OPS[op].cases(TINY, CPU)
    rows = measure(case, rounds=1)
    assert {row["ok"] for row in rows if row["compared"] and row["median_s"] and row["role"] != "limit"} == {True}
    assert not [row for row in rows if row["ok"] is False or row["why"].startswith("failed")], rows
    assert {row["role"] for row in rows if row["median_s"]} >= {"ours", "baseline", "limit"}


def test_the_training_step_agrees_with_the_reference(tmp_path):
    code, written = run(tmp_path / "record.json", "training_step")
    (ours,) = rows_of(written, "ours")
    assert code == 0
    assert ours["tokens_per_s"] == pytest.approx(16 / ours["median_s"])
    assert sum(ours["details"]["flops"].values()) == ours["work"]["matrix product"]


def right_value_wrong_gradient(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    right = rms_norm.reference.rms_norm(x, weight, eps)
    return right.detach() + (x - x.detach()) + (weight - weight.detach())


def raises(*_: object) -> Tensor:
    raise RuntimeError("no kernel image\nand more")


@pytest.mark.parametrize(
    ("implementation", "why"),
    [
        (lambda x, weight, eps: 1.001 * rms_norm.reference.rms_norm(x, weight, eps), "wrong: y: difference"),
        (lambda x, weight, eps: rms_norm.reference.rms_norm(x, weight, eps)[:-1], "wrong: y: shape"),
        (lambda x, weight, eps: x * float("nan") * weight, "wrong: y: not finite"),
        (right_value_wrong_gradient, "wrong: gradient of x: difference"),
        (lambda x, weight, eps: rms_norm.reference.rms_norm(x, weight.detach(), eps), "wrong: no gradient of weight"),
        (raises, "failed: RuntimeError: no kernel image"),
    ],
)
def test_what_is_wrong_has_no_time(tmp_path, monkeypatch, capsys, implementation, why):
    monkeypatch.setattr(rms_norm, "rms_norm", implementation)
    code, written = run(tmp_path / "record.json", "rms_norm")
    assert code == 1
    red = [row for row in rows_of(written, "ours") if row["case"].startswith("rms_norm")]
    for row in red:
        assert row["ok"] is False
        assert row["why"].startswith(why)
        assert row["median_s"] is row["q1_s"] is row["q3_s"] is None
        assert row["of_limit"] == {}
    assert len(red) == 2
    assert "RED rms_norm" in capsys.readouterr().out
    # Control: the reference beside it has its times.
    assert all(row["median_s"] for row in rows_of(written, "reference"))


def test_a_wrong_peer_is_red_and_one_that_cannot_run_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(moe_layer, "grouped_mm_layer", lambda x, *_: x)
    code, written = run(tmp_path / "record.json", "moe_layer")
    assert code == 1
    assert rows_of(written, "torch grouped_mm")[0]["why"].startswith("wrong: ")
    monkeypatch.setattr(moe_layer, "grouped_mm_layer", raises)
    code, written = run(tmp_path / "record.json", "moe_layer")
    assert code == 0
    assert rows_of(written, "torch grouped_mm")[0]["why"] == "failed: RuntimeError: no kernel image"


def test_integers_are_compared_exactly(monkeypatch):
    def one_row_off(*arguments: Any) -> Any:
        routing_ = routing.reference.route(*arguments)
        return routing_._replace(count_E=routing_.count_E.roll(1))

    monkeypatch.setattr(routing, "route", one_row_off)
    (case,) = routing.cases(TINY, CPU)
    ours = measure(case, rounds=1)[0]
    assert ours["why"].startswith("wrong: count: difference")


BLOCKED = """
import sys
for name in ("pydantic", "ruamel", "deepspeed", "transformers", "triton", "liger_kernel"):
    sys.modules[name] = None  # import raises ModuleNotFoundError
sys.path[:0] = [{kernels!r}, {repository!r}]
from benchmarks.operations.suite import main
sys.exit(main(["--suite", "cpu", "--op", "moe_layer", "training_step", "--rounds", "1"], size="tiny"))
"""


def test_a_plain_checkout_with_nothing_but_torch_will_do(tmp_path):
    code = BLOCKED.format(kernels=str(REPOSITORY / "kernels"), repository=str(REPOSITORY))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=tmp_path, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the operations alone: LocalMoE needs pydantic" in done.stdout
    assert "training_step: not available: storyteller_ds needs pydantic" in done.stdout
    assert done.stdout.count("not installed") == 4, done.stdout


def test_the_gpu_suite_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--suite", "gpu"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--suite", "cpu", "--op", "softmax"], ["--suite", "cpu", "--rounds", "0"], ["--op", "rms_norm"]]
)
def test_what_cannot_be_meant_is_refused(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_a_second_run_of_a_commit_is_kept_beside_the_first(tmp_path):
    machine = {"device": "NVIDIA H200 (SXM)", "instruction_set": None, "commit": "abc"}
    for name in ("nvidia-h200-sxm_abc.json", "nvidia-h200-sxm_abc_run2.json"):
        path = record.file_for(tmp_path / "results", machine)
        assert path == tmp_path / "results" / name
        record.write(machine, path)
    assert record.file_for(tmp_path / "mine.json", machine) == tmp_path / "mine.json"


def test_every_op_has_its_place():
    for name, op in OPS.items():
        assert isinstance(op.GOALS, dict)
        for goals in op.GOALS.values():
            assert all(goal.op == name for goal in goals)
    assert {op for ops in readme.OPS_OF_README.values() for op in ops} <= OPS.keys()
