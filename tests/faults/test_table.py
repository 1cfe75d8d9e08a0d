"""docs/reliability.md states the promises of the registry, and shows the faults whose promise was broken."""

from pathlib import Path

import pytest

from tests.support.distributed import REPOSITORY

from . import all_faults
from .table import BEGIN, END, as_markdown, as_text, read_rows, write_into

RESULTS = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite>
  <testcase classname="tests.faults.test_faults" name="test_fault[a]"><properties>
    <property name="fault" value="kill -9"/><property name="promised" value="ends"/>
    <property name="seen" value="exit 137"/></properties></testcase>
  <testcase classname="tests.faults.test_faults" name="test_fault[b]"><properties>
    <property name="fault" value="a | b"/><property name="promised" value="exit 2"/>
    <property name="seen" value="exit 0"/></properties><failure message="AssertionError: exit 0&#10;more"/></testcase>
  <testcase classname="tests.fuzz.test_configs" name="test_random_configs[a]"/>
  <testcase classname="tests.fuzz.test_configs" name="test_random_configs[b]"/>
</testsuite></testsuites>
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.xml"
    path.write_text(RESULTS)
    return path


def test_what_was_not_as_promised_shows(results: Path):
    rows = read_rows(results)
    assert [row.passed for row in rows] == [True, False, True]
    assert [row.fault for row in rows] == ["kill -9", "a | b", "random configs"]
    assert rows[0].seen == "exit 137"
    assert rows[1].seen == "NOT AS PROMISED: AssertionError: exit 0"
    assert as_text(rows).endswith("3 faults, 1 not as promised")
    assert "| a \\| b | exit 2 | NOT AS PROMISED" in as_markdown(rows)


def test_only_the_table_of_the_document_is_replaced(results: Path, tmp_path: Path):
    document = tmp_path / "document.md"
    document.write_text(f"before\n{BEGIN}old\n{END}after\n")
    for _ in range(2):
        write_into(document, read_rows(results))
        text = document.read_text()
        assert text.startswith(f"before\n{BEGIN}")
        assert text.endswith(f"{END}after\n")
        assert text.count("| kill -9 |") == 1
        assert "old" not in text


def test_the_document_has_every_fault_with_its_promise():
    text = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    missing = [f.name for f in all_faults.FAULTS if f"| {f.name} | {f.promise} | ".replace("\n", " ") not in text]
    assert not missing, f"run make test-faults: {missing}"
