"""What `storyteller bench quality` has found: a page, a plot, and JSON for programs."""

import dataclasses
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from storyteller_ds.bench.compared import SUPERSEDED
from storyteller_ds.bench.quality import Comparison, Run
from storyteller_ds.machine import machine
from storyteller_ds.model.counts import count_parameters
from storyteller_ds.training.run_folder import written_record

Runs = Mapping[str, Sequence[Run]]
COLUMNS = ("recipe", "what", "parameters", "active", "lr of three", "steps", "tokens", "bits per byte", "to the first")
OURS = "mixture"
PAGE_COLUMNS = 500
"""Width of a table that is not for a terminal; its lines are not broken."""


def mean_bpb(runs: Sequence[Run], seeds: int) -> float:
    """Over the seeds, with the best rate."""
    return statistics.mean(run.bpb for run in runs[:seeds])


def table(comparison: Comparison, found: Runs) -> Table:
    """A row for each recipe, in the order in which they ran."""
    rows = Table(box=box.MARKDOWN)
    for column in COLUMNS:
        rows.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    first = mean_bpb(next(iter(found.values())), comparison.seeds)
    for recipe in comparison.recipes:
        runs = found[recipe.name]
        best = runs[: comparison.seeds]
        bpb, spread = mean_bpb(runs, comparison.seeds), max(r.bpb for r in best) - min(r.bpb for r in best)
        count = count_parameters(recipe.load(comparison.overrides).run)
        rows.add_row(
            recipe.name,
            recipe.what,
            *(f"{n / 1e6:.1f}M" for n in count),
            _rates(runs, comparison.seeds),
            str(round(statistics.mean(r.steps for r in best))),
            f"{statistics.mean(r.tokens for r in best) / 1e6:.2f}M",
            f"{bpb:.4f} ± {spread / 2:.4f}",
            f"{bpb / first - 1:+.1%}",
        )
    return rows


def as_markdown(rows: Table) -> list[str]:
    """The lines of a table."""
    console = Console(file=io.StringIO(), width=PAGE_COLUMNS)
    with console.capture() as captured:
        console.print(rows)
    return [line.strip() for line in captured.get().splitlines() if line.strip()]


def verdict(comparison: Comparison, found: Runs) -> list[str]:
    """One line for every comparison with our default."""
    if OURS not in found:
        return []
    means = {name: mean_bpb(runs, comparison.seeds) for name, runs in found.items()}
    ours = means[OURS]
    others = {name: means[name] for name in means if name != OURS and name not in SUPERSEDED}
    old = {name: means[name] for name in SUPERSEDED if name in means}
    if old:
        others["the best superseded recipe"] = min(old.values())
    return [f"{OURS} is {_distance(ours, bpb)} {name}" for name, bpb in others.items()]


def as_page(comparison: Comparison, found: Runs, lines: Sequence[str], command: str, plot: str) -> str:
    """The report in Markdown.

    Args:
        comparison: what was run.
        found: its runs.
        lines: of the table.
        command: that was typed.
        plot: its file, beside the page.
    """
    facts = "\n".join(f"- {name}: {value}" for name, value in machine().items())
    return (
        f"# Bits per byte after {comparison.minutes:g} minutes\n\n"
        f"Written by `{command}`.\n\n{facts}\n\n"
        f"Every recipe trained for {comparison.minutes:g} minutes in a process of its own, with each of three learning "
        f"rates on seed 0, and with the best of them on {comparison.seeds} seeds: mean, and half of what lies between "
        "the lowest and the highest. A warm-up of more than 30 steps is cut to 30. Lower is better; scored on the "
        "whole validation text.\n\n" + "\n".join(lines) + f"\n\n![Bits per byte of each recipe]({plot})\n\n"
    ) + "".join(f"- {line}\n" for line in verdict(comparison, found))


def as_json(comparison: Comparison, found: Runs, command: str) -> str:
    """Everything."""
    document = {
        "command": command,
        "machine": machine(),
        "minutes": comparison.minutes,
        "seeds": comparison.seeds,
        "recipes": {name: [dataclasses.asdict(run) for run in runs] for name, runs in found.items()},
        "verdict": verdict(comparison, found),
    }
    return json.dumps(document, indent=2) + "\n"


def save_plot(comparison: Comparison, found: Runs, path: Path) -> None:
    """A row of points for each recipe: one for each seed with its best rate, and faint ones for the other rates.

    Raises:
        UserError: it cannot be written.
    """
    figure = Figure((8.0, 1.2 + 0.45 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, runs in enumerate(found.values()):
        best, rest = runs[: comparison.seeds], runs[comparison.seeds :]
        axes.plot([r.bpb for r in rest], [place] * len(rest), "o", color="0.8")
        axes.plot([r.bpb for r in best], [place] * len(best), "o", color="C0" if place == 0 else "0.3")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"bits per byte after {comparison.minutes:g} minutes (pale: other learning rates)")
    axes.grid(axis="x", which="both", alpha=0.3)
    beside = path.with_name(f"{path.name}.tmp")
    with written_record(path):
        figure.savefig(beside, format="png", dpi=150)
        beside.replace(path)


def _rates(runs: Sequence[Run], seeds: int) -> str:
    """All rates that were tried, the best in bold."""
    rates = {runs[0].lr, *(run.lr for run in runs[seeds:])}
    return ", ".join(f"**{lr:g}**" if lr == runs[0].lr else f"{lr:g}" for lr in sorted(rates))


def _distance(ours: float, theirs: float) -> str:
    part = ours / theirs - 1
    return f"{abs(part):.1%} {'below' if part < 0 else 'above'}"
