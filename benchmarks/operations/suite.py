"""The command: which operations, measured how, reported where."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from storyteller_kernels.cpu_memory import keep_freed_memory

from benchmarks.operations import record
from benchmarks.operations.case import Case, Size, Unavailable
from benchmarks.operations.goals import Row, Verdict, as_records, judge
from benchmarks.operations.measure import measure, red
from benchmarks.operations.ops import (
    cross_entropy,
    expert_mlp,
    linear,
    moe_layer,
    permute,
    rms_norm,
    routing,
    training_step,
)

OPS: dict[str, ModuleType] = {
    "rms_norm": rms_norm,
    "routing": routing,
    "permute": permute,
    "linear": linear,
    "expert_mlp": expert_mlp,
    "moe_layer": moe_layer,
    "cross_entropy": cross_entropy,
    "training_step": training_step,
}


def main(arguments: Sequence[str] | None = None, size: Size | None = None) -> int:
    """Measure, print, write the record.

    Args:
        arguments: of the command line; None: those of this process.
        size: shapes other than the suite's, for tests.

    Returns:
        1 if something computes the wrong thing, 2 if the suite cannot run here, otherwise 0.
    """
    options = _parser().parse_args(arguments)
    if options.suite == "gpu" and not torch.cuda.is_available():
        print("--suite gpu needs a CUDA device; this machine has none")
        return 2
    machine = {**record.describe(options.suite, options.commit), "rounds": options.rounds}
    path = record.file_for(options.out, machine) if options.out else None
    device = torch.device("cuda" if options.suite == "gpu" else "cpu")
    if device.type == "cpu":
        # As in the framework's runs; applies to everything that is measured, including limits.
        keep_freed_memory()
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    for op in options.op or OPS:
        of_op = run(op, size or options.suite, device, options.rounds)
        rows += of_op
        verdicts += judge(OPS[op].GOALS.get(size or options.suite, []), of_op)
        if path:
            # Write after each operation, so that results survive losing the machine.
            record.write({**machine, "results": rows, "goals": as_records(verdicts)}, path)
    _print_goals(verdicts)
    if path:
        print(f"\nwritten: {path}")
    for row in red(rows):
        print(f"RED {row['op']}, {row['case']}: {row['implementation']}: {row['why']}")
    return 1 if red(rows) else 0


def run(op: str, size: Size, device: torch.device, rounds: int | None = None) -> list[Row]:
    """Measure an operation, printing each case as it is done."""
    torch.manual_seed(0)
    rows: list[Row] = []
    try:
        for case in OPS[op].cases(size, device):
            of_case = measure(case, rounds)
            _print_case(case, of_case)
            rows += of_case
    except Unavailable as reason:
        print(f"\n{op}: {reason}")
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["cpu", "gpu"], required=True, help="Where to measure, and what sizes.")
    parser.add_argument("--op", nargs="+", choices=list(OPS), metavar="NAME", help=f"Only these: {', '.join(OPS)}.")
    parser.add_argument(
        "--rounds", type=_positive, help="Timed rounds of each case; default: the case's own, 10 to 50."
    )
    parser.add_argument("--out", type=Path, help="Write the record to this .json file, or into this folder.")
    parser.add_argument("--commit", help="Of this code, where the checkout has no git to ask.")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _print_case(case: Case, rows: Sequence[Row]) -> None:
    for direction in case.directions:
        here = [row for row in rows if row["direction"] == direction]
        ours = next((row["median_s"] for row in here if row["role"] == "ours"), None)
        print(f"\n{case.op}, {case.name}, {direction}, {case.device.type}")
        for row in sorted(here, key=lambda row: row["median_s"] or float("inf")):
            print(f"  {row['implementation']:40s} {_figures(row, ours)}", flush=True)


def _figures(row: Row, ours: float | None) -> str:
    if row["median_s"] is None:
        return str(row["why"])
    parts = [f"{1e3 * row['median_s']:9.3f} ms ({1e3 * row['q1_s']:.3f} to {1e3 * row['q3_s']:.3f})"]
    if row["role"] == "limit":
        parts.append(f"limit: {row['rate'] / 1e9:.1f} G{row['unit']}")
    else:
        parts += [f"{share:.2f} of {name}" for name, share in row["of_limit"].items()]
    if row["tokens_per_s"] and row["role"] != "limit":
        parts.append(f"{row['tokens_per_s']:,.0f} tokens/s")
    if row["peak_bytes"]:
        parts.append(f"{row['peak_bytes'] / 2**20:,.0f} MiB")
    if row["role"] == "peer" and ours:
        parts.append(f"ours is {row['median_s'] / ours:.2f}x as fast")
    return "; ".join([*parts, *filter(None, [row["note"]])])


def _print_goals(verdicts: Sequence[Verdict]) -> None:
    if verdicts:
        print("\ngoals")
    for verdict in verdicts:
        met = {True: "met", False: "not met", None: "not measured"}[verdict.met]
        why = f" ({verdict.why})" if verdict.why else ""
        measured = "-" if verdict.measured is None else f"{verdict.measured:.3f}"
        against = f" ({verdict.against})" if verdict.against else ""
        print(f"  {verdict.op}, {verdict.case}, {verdict.direction}")
        print(f"    goal {verdict.goal}; measured {measured}{against}; {met}{why}")
