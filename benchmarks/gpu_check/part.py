"""What the parts in this package have in common: their options and their record."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.operations.record import describe


@dataclass(frozen=True)
class Options:
    """Options of a part."""

    device: torch.device
    quick: bool
    out: Path
    overrides: list[str]
    """`section.field=value` for runs."""


def run_part(name: str, measure: Callable[[Options], dict[str, Any]]) -> dict[str, Any]:
    """Run a part: read the options, measure, then write, print and return the record OUT/NAME.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    options = Options(torch.device(given.device), given.quick, given.out, given.overrides)
    record = {"machine": describe("gpu" if given.device == "cuda" else "cpu", None), **measure(options)}
    text = json.dumps(record, indent=1)
    (options.out / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    print(text)
    return record
