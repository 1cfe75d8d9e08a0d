"""The three forms of the certificate agree."""

import dataclasses
import json

import pytest
from storyteller_kernels.dispatch import instruction_set

from storyteller_ds.certify import report
from storyteller_ds.certify.compare import Results, compare
from storyteller_ds.certify.rows import IN_FP32, ROWS, Placement
from storyteller_ds.certify.run import Verdict

SINGLE, EP2, ZERO1 = (next(row for row in ROWS if row.name == name) for name in ("single", "ep2", "zero1"))


@pytest.fixture
def verdicts(results: Results) -> list[Verdict]:
    other = dataclasses.replace(results, weights={k: v * 1.5 for k, v in results.weights.items()})
    other = dataclasses.replace(other, records=[{**record, "train_loss": None} for record in other.records])
    difference = compare(other, results)
    return [
        Verdict(Placement(SINGLE, "cpu", 1), "reference", None, results, None, None, 1.0),
        Verdict(Placement(EP2, "cuda", 4), "differs", difference.problem(IN_FP32), other, difference, 1.00049, 2.0),
        Verdict(Placement(ZERO1, "cpu", 2), "failed", "ConfigError: no", None, None, None, 3.0),
    ]


def test_json_has_every_row_and_only_json(verdicts: list[Verdict]):
    document = json.loads(report.as_json(verdicts), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["passed"] is False
    single, ep2, zero1 = document["rows"]
    assert (single["outcome"], single["difference"]) == ("reference", None)
    assert (ep2["outcome"], ep2["first_tensor"], ep2["difference"]["loss"]) == ("differs", "embedding", "nan")
    assert ep2["traffic"] == {"sent_bytes": 1010, "sent_over_routed": 1.00049}
    assert (zero1["outcome"], zero1["problem"]) == ("failed", "ConfigError: no")
    assert json.loads(report.as_json(verdicts[:1]))["passed"] is True


def test_markdown_is_a_table(verdicts: list[Verdict]):
    lines = report.markdown_table(verdicts).splitlines()
    assert len(lines) == 2 + len(verdicts)
    assert {line.count("|") for line in lines} == {len(report.COLUMNS) + 1}
    assert "| ep2 | 4 cuda | nan |" in lines[3]
    assert lines[4].endswith("| failed |")


def test_problems_are_one_line_a_row(verdicts: list[Verdict]):
    ep2, zero1 = report.problems(verdicts)
    assert ep2.startswith("ep2: largest difference nan (loss)")
    assert "first tensor that differs: embedding (5.0e-01)" in ep2
    assert zero1 == "zero1: ConfigError: no"


def test_the_page_has_the_machine_and_the_table(verdicts: list[Verdict]):
    page = report.as_page(verdicts, 65.0)
    assert "0 of 2 rows passed in 65 s" in page
    assert report.markdown_table(verdicts) in page
    assert report.SCOPE in page
    assert "8 steps with the seed of 24" in page
    assert f", {instruction_set()}\n- python: " in page
    assert "- torch: " in page
