"""The results of `storyteller bench quality`: a table, a page, a plot, and JSON for programs."""

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from storyteller_ds.bench.compared import OURS, SUPERSEDED
from storyteller_ds.bench.pace import Pace
from storyteller_ds.bench.quality import Comparison, Outcome
from storyteller_ds.console import PAGE_COLUMNS
from storyteller_ds.model.counts import count_parameters
from storyteller_ds.sweep.plot import save_figure

Found = Mapping[str, Outcome]
_LEFT = ("recipe", "what")
_RIGHT = ("parameters", "active", "learning rate", "ms a step", "steps", "tokens", "bits per byte", "to the first")


def table(comparison: Comparison, pace: Pace, found: Found) -> Table:
    """A row for each recipe, in the order of the comparison."""
    rows = Table(box=box.MARKDOWN)
    for column in (*_LEFT, *_RIGHT):
        rows.add_column(column, justify="left" if column in _LEFT else "right")
    first = found[comparison.recipes[0].name].bpb
    for recipe in comparison.recipes:
        outcome = found[recipe.name]
        scores = [run.bpb for run in outcome.best]
        count = count_parameters(recipe.load(comparison.overrides).run)
        rows.add_row(
            recipe.name,
            recipe.what,
            f"{count.total / 1e6:.1f}M",
            f"{count.active / 1e6:.1f}M",
            f"{outcome.best[0].lr:g} of {', '.join(f'{lr:g}' for lr in outcome.rates)}",
            f"{1000 * pace.seconds_per_step[recipe.name]:.0f}",
            f"{outcome.best[0].steps}",
            f"{outcome.best[0].tokens / 1e6:.2f}M",
            f"{outcome.bpb:.4f} ± {(max(scores) - min(scores)) / 2:.4f}",
            f"{outcome.bpb / first - 1:+.1%}",
        )
    return rows


def verdict(found: Found) -> list[str]:
    """One line for each comparison with our default."""
    if OURS not in found:
        return []
    others = {name: outcome.bpb for name, outcome in found.items() if name not in (OURS, *SUPERSEDED)}
    old = [found[name].bpb for name in SUPERSEDED if name in found]
    if old:
        others["the best superseded recipe"] = min(old)
    return [f"{OURS} is {_distance(found[OURS].bpb / bpb - 1)} {name}" for name, bpb in others.items()]


def _distance(part: float) -> str:
    return f"{abs(part):.1%} {'below' if part < 0 else 'above'}"


def as_page(comparison: Comparison, pace: Pace, found: Found, command: str, plot: str) -> str:
    """The report in Markdown.

    Args:
        comparison: what was run.
        pace: how long a step of each recipe took.
        found: the outcome of each recipe.
        command: the command that was typed.
        plot: its file, next to the page.
    """
    console = Console(file=io.StringIO(), width=PAGE_COLUMNS)
    with console.capture() as captured:
        console.print(table(comparison, pace, found))
    rows = "\n".join(line.strip() for line in captured.get().splitlines() if line.strip())
    facts = "\n".join(f"- {name}: {value}" for name, value in pace.machine.items())
    minutes, seeds = comparison.minutes, comparison.seeds
    return (
        f"# Bits per byte after {minutes:g} minutes\n\nWritten by `{command}`.\n\n{facts}\n\n"
        f"Each run trained for as many steps as {minutes:g} minutes have on this machine, where all recipes were timed "
        "in turn before. Each recipe ran with three learning rates on seed 0, and with the best of them on "
        f"{seeds} seeds. Given are the mean and half of what lies between the lowest and the highest; lower is better. "
        "Scored on the whole validation text. A recipe whose warm-up is longer than 30 steps, or than a "
        "tenth of the run, gets that.\n\n"
        f"{rows}\n\n![Bits per byte of each recipe]({plot})\n\n"
    ) + "".join(f"- {line}\n" for line in verdict(found))


def as_json(comparison: Comparison, pace: Pace, found: Found, command: str) -> str:
    """Everything."""
    document = {
        "command": command,
        "machine": pace.machine,
        "seconds_per_step": pace.seconds_per_step,
        "minutes": comparison.minutes,
        "seeds": comparison.seeds,
        "recipes": {name: dataclasses.asdict(outcome) for name, outcome in found.items()},
        "verdict": verdict(found),
    }
    return json.dumps(document, indent=2) + "\n"


def save_plot(minutes: float, found: Found, path: Path) -> None:
    """A row of points for each recipe: one for each seed with its best rate, and pale ones for the other rates.

    Raises:
        UserError: the plot cannot be written.
    """
    figure = Figure((8.0, 1.2 + 0.45 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, outcome in enumerate(found.values()):
        for runs, color in ((outcome.others, "0.8"), (outcome.best, "C0" if place == 0 else "0.3")):
            axes.plot([run.bpb for run in runs], [place] * len(runs), "o", color=color)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel(f"bits per byte after {minutes:g} minutes (pale: other learning rates)")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)
