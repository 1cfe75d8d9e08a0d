"""The results of `storyteller compare`: a table, a page, curves over tokens, time and work, and JSON for programs."""

import dataclasses
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from rich import box
from rich.console import Console
from rich.table import Table

from storyteller_ds.bench.compared import Recipe
from storyteller_ds.bench.finished import Run
from storyteller_ds.bench.pace import Pace
from storyteller_ds.bench.quality import Comparison, Outcome
from storyteller_ds.bench.worth import verdict
from storyteller_ds.console import PAGE_COLUMNS
from storyteller_ds.model.counts import count_parameters, flops_per_token
from storyteller_ds.records.run_folder import METRICS
from storyteller_ds.records.trained_run import TrainedRun
from storyteller_ds.sweep.plot import PANEL_INCHES, save_figure

_LEFT = ("model", "what")
_RIGHT = ("parameters", "active", "MFLOP/token", "learning rate", "ms a step", "steps", "tokens", "bits per byte")


@dataclass(frozen=True)
class WorthReport:
    """A finished comparison of twins."""

    comparison: Comparison
    pace: Pace
    found: Mapping[str, Outcome]
    command: str
    """The command that was typed."""

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        tokens = self.comparison.tokens
        budget = f"{self.comparison.minutes:g} minutes" if tokens is None else f"{tokens / 1e6:g} million tokens"
        return verdict(self.found, budget)

    def table(self) -> Table:
        """A row for each model."""
        rows = Table(box=box.MARKDOWN)
        for column in (*_LEFT, *_RIGHT):
            rows.add_column(column, justify="left" if column in _LEFT else "right")
        for recipe in self.comparison.recipes:
            outcome, run = self.found[recipe.name], recipe.load(self.comparison.overrides).run
            scores, count = [each.bpb for each in outcome.best], count_parameters(run)
            rows.add_row(
                recipe.name,
                recipe.what,
                f"{count.total / 1e6:.2f}M",
                f"{count.active / 1e6:.2f}M",
                f"{flops_per_token(run) / 1e6:.1f}",
                f"{outcome.best[0].lr:g} of {', '.join(f'{lr:g}' for lr in outcome.rates)}",
                f"{1000 * self.pace.seconds_per_step[recipe.name]:.0f}",
                f"{outcome.best[0].steps}",
                f"{outcome.best[0].tokens / 1e6:.2f}M",
                f"{outcome.bpb:.4f} ± {(max(scores) - min(scores)) / 2:.4f}",
            )
        return rows

    def as_page(self, plot: str) -> str:
        """The report in Markdown; `plot` is a file next to it."""
        console = Console(file=io.StringIO(), width=PAGE_COLUMNS)
        with console.capture() as captured:
            console.print(self.table())
        rows = "\n".join(line.strip() for line in captured.get().splitlines() if line.strip())
        facts = "\n".join(f"- {name}: {value}" for name, value in self.pace.machine.items())
        return (
            f"# Is a mixture worth it here?\n\n{self.verdict}\n\n{rows}\n\n![Bits per byte over tokens, time and work]"
            f"({plot})\n\nWritten by `{self.command}`.\n\n{facts}\n\nBits per byte are those of the whole validation "
            "text at the end: the mean over seeds, and half of what lies between the lowest and the highest; lower is "
            "better. Runs of one seed see the same batches; the interval of a difference is Student's, over seeds. The "
            "points of the curves are validations on a part of the text.\n"
        )

    def as_json(self) -> str:
        """Everything."""
        document = {
            "verdict": self.verdict,
            "command": self.command,
            "machine": self.pace.machine,
            "seconds_per_step": self.pace.seconds_per_step,
            "minutes": self.comparison.minutes if self.comparison.tokens is None else None,
            "tokens": self.comparison.tokens,
            "models": {name: dataclasses.asdict(outcome) for name, outcome in self.found.items()},
        }
        return json.dumps(document, indent=2) + "\n"

    def save_plot(self, path: Path) -> None:
        """Bits per byte during training, against tokens, minutes and work: a line for each model, mean over its seeds.

        Raises:
            UserError: the plot cannot be written.
        """
        figure = Figure((2 * PANEL_INCHES[0], PANEL_INCHES[1]), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for recipe in self.comparison.recipes:
            run = recipe.load(self.comparison.overrides).run
            tokens_of_a_step = run.train.global_batch_size * run.data.sequence_length
            curve = self._curve(recipe, self.found[recipe.name].best)
            scores = [*curve.values()]
            minutes = self.pace.seconds_per_step[recipe.name] / 60
            work = tokens_of_a_step * flops_per_token(run)
            for axes, of_a_step in zip(panels, (tokens_of_a_step, minutes, work), strict=True):
                axes.plot([step * of_a_step for step in curve], scores, marker="o", markersize=3, label=recipe.name)
        for axes, label in zip(panels, ("tokens", "minutes", "FLOP"), strict=True):
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
            axes.xaxis.set_major_locator(MaxNLocator(5))  # as many as there is room for labels
        for axes in (panels[0], panels[2]):
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        panels[0].set_ylabel("bits per byte")
        panels[0].legend()
        save_figure(figure, path)

    def _curve(self, recipe: Recipe, runs: Sequence[Run]) -> dict[int, float]:
        """Step -> mean over the seeds; leaves out runs whose folders are on another machine."""
        scores: dict[int, list[float]] = {}
        for run in runs:
            folder = self.comparison.folder / self.comparison.name_of(recipe, run.lr, run.seed)
            records = TrainedRun(folder, run.steps).metrics if (folder / METRICS).exists() else []
            for record in records:
                if "val_bpb" in record:
                    scores.setdefault(record["step"], []).append(record["val_bpb"])
        return {step: statistics.mean(each) for step, each in sorted(scores.items())}
