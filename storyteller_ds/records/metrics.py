"""The records in metrics.jsonl and how they are read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
"""One line of metrics.jsonl."""


def read_metrics(path: Path, attempts: int | None = None) -> list[dict[str, Any]]:
    """The records of a run, oldest first, even while it is writing them; empty if there is no file.

    Lines that are not JSON objects are skipped, such as a last line that was cut short when the run was killed.

    Args:
        path: metrics.jsonl.
        attempts: only records up to this many attempted steps; None: all.
    """
    lines = [line for line in metrics_lines(path) if attempts is None or attempt_of_line(line) <= attempts]
    return [record for line in lines if (record := _object(line)) is not None]


def metrics_lines(path: Path) -> list[str]:
    """All lines, unparsed; empty if there is no file."""
    return path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []


def finite(value: Any) -> Any:
    """A value with every number that is not finite replaced by None, since JSON cannot represent them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def attempt_of(record: Record) -> int:
    """Number of steps attempted when a record was written, including undone ones; never decreases."""
    step: int = record["step"]
    return step + int(record.get("undone_steps", 0))


def attempt_of_line(line: str) -> float:
    """The attempt of a line; infinity for a line that was cut short when the run was killed."""
    try:
        return float(attempt_of(json.loads(line)))
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
