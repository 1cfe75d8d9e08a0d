"""Lines of metrics.jsonl: what they are, and how they are read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
"""One line of metrics.jsonl."""


def read_metrics(path: Path, attempts: int | None = None) -> list[dict[str, Any]]:
    """The records of a run, oldest first, also while it writes them; none where there is no file.

    Lines that are not JSON objects are skipped: the last one, where a kill has cut it short.

    Args:
        path: metrics.jsonl.
        attempts: only up to so many steps tried; None: all.
    """
    lines = [line for line in metrics_lines(path) if attempts is None or attempt_of_line(line) <= attempts]
    return [record for line in lines if (record := _object(line)) is not None]


def metrics_lines(path: Path) -> list[str]:
    """All lines as they stand there; none where there is no file."""
    return path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []


def finite(value: Any) -> Any:
    """A value with None for every number that is not finite, since JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def attempt_of(record: Record) -> int:
    """How many steps had been tried when a record was written, undone ones included; never goes back."""
    step: int = record["step"]
    return step + int(record.get("undone_steps", 0))


def attempt_of_line(line: str) -> float:
    """The attempt of a line; infinity for one that a kill has cut short."""
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
