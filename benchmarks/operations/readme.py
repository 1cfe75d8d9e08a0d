"""Writes the newest results into the tables of the READMEs, between two markers."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.operations.goals import Row, is_met
from benchmarks.operations.record import machine_name
from storyteller_ds.durable import write_atomically

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
RESULTS = Path(__file__).resolve().parent / "results"
COMMAND = "python benchmarks/operations/table.py"
BEGIN, END = f"<!-- measured: written by `{COMMAND}` -->", "<!-- end of measured -->"
OPS_OF_README = {
    "rms_norm": ["rms_norm"],
    "routing": ["routing"],
    "permute": ["permute"],
    "linear": ["linear"],
    "expert_mlp": ["expert_mlp", "moe_layer", "training_step"],
    "cross_entropy": ["cross_entropy"],
}
"""Folder of an operation -> its benchmarks."""
SUITES = {"cpu": "CPU", "gpu": "GPU"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Runs:
    """The newest results of one operation on one machine: all runs of one commit."""

    op: str
    records: list[Record]

    @property
    def newest(self) -> Record:
        """The most recent record."""
        return max(self.records, key=lambda record: str(record["date"]))

    @property
    def machine(self) -> str:
        """The machine they were measured on."""
        return machine_name(self.newest)


def load(folder: Path) -> list[Record]:
    """All records in a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def newest_runs(records: Iterable[Record]) -> list[Runs]:
    """For every suite, machine and operation, the runs of the commit that was measured last; CPUs first."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        for op in dict.fromkeys(row["op"] for row in record["results"]):
            groups.setdefault((record["suite"], machine_name(record), op), []).append(record)
    chosen = []
    for (_, _, op), candidates in sorted(groups.items()):
        last = max(candidates, key=lambda record: str(record["date"]))
        same = [r for r in candidates if (r["commit"], r["dirty"]) == (last["commit"], last["dirty"])]
        chosen.append(Runs(op, same))
    return chosen


def measured(runs: Sequence[Runs]) -> str:
    """The tables of kernels/README.md: goals, and ours next to the limit and the best peer, for each device."""
    if not runs:
        return f"Nothing measured yet.\n\n{_missing(runs)}"
    parts = []
    for suite, machine in dict.fromkeys((one.newest["suite"], one.machine) for one in runs):
        here = [one for one in runs if (one.newest["suite"], one.machine) == (suite, machine)]
        parts.append(f"### {machine} ({SUITES[suite]})\n\n{_conditions(here)}")
        goals = [line for one in here for line in _goal_lines(one)]
        if goals:
            parts.append(_table(["what", "goal", "measured", ""], goals))
        parts.append(_table(_COLUMNS, [line for one in here for line in _lines(one)]))
    return "\n\n".join(filter(None, [*parts, _missing(runs)]))


def measured_of(readme: str, runs: Sequence[Runs]) -> str:
    """The table of one operation's README, for all devices."""
    here = [one for one in runs if one.op in OPS_OF_README[readme]]
    lines = [[one.machine, *line] for one in here for line in _lines(one)]
    table = _table(["device", *_COLUMNS], lines) if lines else ""
    return "\n\n".join(filter(None, [table, _missing(here)]))


def between_markers(text: str, inside: str) -> str:
    """The text of a README with its measured part replaced; without markers, these are added at its end."""
    block = f"{BEGIN}\n{inside}\n{END}"
    if BEGIN not in text:
        return f"{text.rstrip()}\n\n## Measured\n\n{block}\n"
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"a README has '{BEGIN}' but not '{END}' after it")
    return f"{before}{block}{after}"


def readmes(kernels: Path, results: Path) -> dict[Path, str]:
    """What the READMEs should contain: path -> text."""
    runs = newest_runs(load(results))
    wanted = {kernels / "README.md": measured(runs)}
    for folder in OPS_OF_README:
        wanted[kernels / "storyteller_kernels" / folder / "README.md"] = measured_of(folder, runs)
    return {path: between_markers(path.read_text(encoding="utf-8"), inside) for path, inside in wanted.items()}


def write(kernels: Path = KERNELS, results: Path = RESULTS) -> list[Path]:
    """Update all READMEs; returns those that changed."""
    changed = []
    for path, text in readmes(kernels, results).items():
        if path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
            changed.append(path)
    return changed


_COLUMNS = ["case", "direction", "ours", "share of the limit", "best peer", "ours is", "commit"]


def _lines(runs: Runs) -> list[list[str]]:
    """One line for each case and direction; numbers are medians over the runs."""
    lines = []
    name = "" if runs.op in ("rms_norm", "permute") else f"{runs.op} "  # the names of their cases contain the operation
    for case, direction in dict.fromkeys((r["case"], r["direction"]) for r in _rows(runs.newest, runs.op)):
        found = [_figures(record, runs.op, case, direction) for record in runs.records]
        timed = [figures for figures in found if figures.seconds]
        label = [f"{name}{case}", direction]
        if not timed:
            lines.append([*label, found[-1].why, "", "", "", _commit(runs)])
            continue
        limits = [
            f"{median(one.shares[limit] for one in timed if limit in one.shares):.2f} of {limit}"
            for limit in timed[-1].shares
        ]
        ratios = [one.ratio for one in timed if one.ratio]
        against = [timed[-1].peer, f"{median(ratios):.2f}x as fast"] if ratios else ["none has a time", ""]
        seconds, tokens = (median(getattr(one, field) for one in timed) for field in ("seconds", "tokens_per_s"))
        time = _seconds(seconds) + (f", {tokens:,.0f} tokens/s" if tokens else "")
        lines.append([*label, time, "; ".join(limits), *against, _commit(runs)])
    return lines


@dataclass(frozen=True)
class _Figures:
    """Results of our implementation in one run."""

    seconds: float
    """0: there is no time."""
    why: str
    tokens_per_s: float
    """0: not counted."""
    shares: dict[str, float]
    peer: str
    """The best peer that computes the same."""
    ratio: float
    """The peer's time over ours; 0: there is no peer."""


def _figures(record: Record, op: str, case: str, direction: str) -> _Figures:
    rows = [r for r in _rows(record, op) if (r["case"], r["direction"]) == (case, direction)]
    ours = next((row for row in rows if row["role"] == "ours"), None)
    if ours is None or not ours["median_s"]:
        return _Figures(0.0, ours["why"] if ours else "not run", 0.0, {}, "", 0.0)
    peers = [row for row in rows if row["role"] == "peer" and row["compared"] and row["median_s"]]
    best = min(peers, key=lambda row: float(row["median_s"]), default=None)
    ratio = best["median_s"] / ours["median_s"] if best else 0.0
    name = best["implementation"] if best else ""
    return _Figures(ours["median_s"], "", ours["tokens_per_s"] or 0.0, ours["of_limit"], name, ratio)


def _goal_lines(runs: Runs) -> list[list[str]]:
    """One line for each goal of the operation; the measured value is the median over the runs."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for record in runs.records:
        for goal in record["goals"]:
            if goal["op"] == runs.op:
                groups.setdefault((goal["case"], goal["direction"], goal["goal"]), []).append(goal)
    lines = []
    for (case, direction, text), goals in groups.items():
        values = [goal["measured"] for goal in goals if goal["measured"] is not None]
        value = median(values) if values else None
        met = is_met(value, goals[-1]["at_least"])
        best = "" if value is None else f"{value:.3f} ({goals[-1]['against']})"
        verdict = {True: "met", False: "not met", None: "not measured"}[met]
        why = goals[-1]["why"]
        lines.append([f"{runs.op}, {case}, {direction}", text, best, f"{verdict}: {why}" if why else verdict])
    return lines


def _rows(record: Record, op: str) -> list[Row]:
    return [row for row in record["results"] if row["op"] == op]


def _conditions(runs: Sequence[Runs]) -> str:
    last = max((one.newest for one in runs), key=lambda record: str(record["date"]))
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items() if number)
    count = max(len(one.records) for one in runs)
    over = f"medians over {count} runs" if count > 1 else "one run"
    return (
        f"{over}, {last['threads']} threads, {versions}; operations on {last['kernels']['backend']} "
        f"({last['kernels']['reason']}); {last['date'][:10]}."
    )


def _commit(runs: Runs) -> str:
    return f"{runs.newest['commit'][:10]}{' and changes' if runs.newest['dirty'] else ''}"


def _missing(runs: Sequence[Runs]) -> str:
    """One line for each kind of device without a record."""
    kinds = [name for suite, name in SUITES.items() if all(one.newest["suite"] != suite for one in runs)]
    return "\n".join(
        f"{name}: not yet measured (`python benchmarks/operations/run.py --suite {name.lower()}`)." for name in kinds
    )


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            break
    return f"{value * scale:.3g} {unit}"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
