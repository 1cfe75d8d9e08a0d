"""Print what `make test-faults` saw, and write it into docs/reliability.md.

    python tests/faults/table.py RESULTS.xml [docs/reliability.md]

The results are pytest's JUnit XML. A test describes itself with the properties fault, promised and seen (pytest's
record_property); if it does not, its name stands for the fault and the promise.
"""

import sys
import textwrap
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

BEGIN = "<!-- Written by make test-faults: -->\n"
END = "<!-- to here. -->\n"
PASSED = "as promised"


class Row(NamedTuple):
    """One fault."""

    fault: str
    promised: str
    seen: str
    passed: bool


def read_rows(results: Path) -> list[Row]:
    """The rows in the order in which the tests ran; all parameters of a test share one row."""
    rows: dict[str, Row] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        row = _row(case)
        if row.fault not in rows or not row.passed:
            rows[row.fault] = row
    return list(rows.values())


def _row(case: ElementTree.Element) -> Row:
    said = {each.get("name", ""): each.get("value", "") for each in case.iter("property")}
    failure = next((case.find(kind) for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None)
    name = said.get("fault") or case.get("name", "").partition("[")[0].removeprefix("test_").replace("_", " ")
    promised = said.get("promised", "what the name says")
    if failure is None:
        return Row(name, promised, said.get("seen") or PASSED, True)
    reason = (failure.get("message") or failure.tag).splitlines()[0]
    return Row(name, promised, f"NOT AS PROMISED: {reason}", False)


def as_markdown(rows: list[Row]) -> str:
    """A table for docs/reliability.md."""
    lines = ["| fault | promised | seen |", "| --- | --- | --- |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row[:3]) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def as_text(rows: list[Row]) -> str:
    """A table for a terminal."""
    widths = (38, 44, 44)
    lines = []
    for row in (Row("FAULT", "PROMISED", "SEEN", True), *rows):
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row[:3], widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
        lines.append("")
    failed = sum(not row.passed for row in rows)
    return "\n".join([*lines, f"{len(rows)} faults, {failed} not as promised"])


def write_into(document: Path, rows: list[Row]) -> None:
    """Replace the text between the two comments."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{as_markdown(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    found = read_rows(Path(sys.argv[1]))
    print(as_text(found))
    if len(sys.argv) > 2:
        write_into(Path(sys.argv[2]), found)
