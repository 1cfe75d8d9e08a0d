"""A report as one HTML file that opens anywhere, and as Markdown with separate pictures."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup

from storyteller_ds.durable import write_atomically
from storyteller_ds.png import as_png
from storyteller_ds.records.run_folder import REPORT, REPORT_MARKDOWN, REPORT_PICTURES
from storyteller_ds.report import figures, summary
from storyteller_ds.report.figures import Drawing
from storyteller_ds.report.look import as_svg, style
from storyteller_ds.report.run_records import RunRecords
from storyteller_ds.report.tables import Rows, atlas_tables, config_yaml, evaluation_rows
from storyteller_ds.version import VERSION

_SHOWN_SAMPLES = 6
"""How many steps' stories are shown, from first to last; only the last one is expanded."""


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    """Sentences before the figures."""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Rows] = ()


@dataclass(frozen=True)
class Report:
    """Everything on the page, in reading order."""

    title: str
    lead: str
    tiles: Sequence[summary.Tile]
    sections: Sequence[Section]
    samples: Sequence[Any]
    facts: Sequence[tuple[str, str]]
    command: str
    configs: Sequence[tuple[str, str]]
    """Name and YAML of each run's settings."""
    missing: Sequence[str]
    date: str
    version: str = VERSION


def make_report(runs: Sequence[RunRecords]) -> Report:
    """Assemble a report from the records of one run or several; must be called inside look.style()."""
    return _of_one(runs[0]) if len(runs) == 1 else _of_several(runs)


def as_html(report: Report) -> str:
    """The whole page, including pictures and style."""
    environment = Environment(
        loader=PackageLoader("storyteller_ds.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # samples.md is Markdown that we wrote, but its stories may contain anything: let no HTML through.
    quotes = MarkdownIt("commonmark", {"html": False})
    environment.filters["story"] = lambda markdown: Markup(quotes.render(markdown))
    environment.filters["svg"] = lambda drawing: Markup(as_svg(drawing.figure, drawing.name))
    return environment.get_template("page.html.jinja").render(report=report)


def as_markdown(report: Report, picture: Callable[[Drawing], str]) -> str:
    """The same for a README or an issue.

    Args:
        report: the report to show.
        picture: returns the path of a drawing's PNG, relative to the Markdown file.
    """
    lines = [f"# {report.title}", "", report.lead, ""]
    lines += [f"- {tile.label}: **{tile.value}**{f' ({tile.note})' if tile.note else ''}" for tile in report.tiles]
    for section in report.sections:
        lines += ["", f"## {section.title}", ""]
        lines += [line for text in section.text for line in (text, "")]
        for table in section.tables:
            lines += [*_pipes(table), ""]
        for drawing in section.drawings:
            lines += [f"![{drawing.title}]({picture(drawing)})", "", f"{drawing.title}: {drawing.caption}", ""]
    if report.samples:
        lines += ["", f"## Stories after step {report.samples[-1].step:,}", "", report.samples[-1].markdown]
    lines += ["", "## Where", "", *(f"- {name}: {value}" for name, value in report.facts)]
    if report.command:
        lines += ["", "To go on:", "", "```", report.command, "```"]
    if report.missing:
        lines += ["", "## Not shown", "", *(f"- {line}" for line in report.missing)]
    return "\n".join(lines) + "\n"


def write_report(runs: Sequence[RunRecords], folder: Path) -> Path:
    """Write report.html, and report.md with its pictures in `report/`; each complete file replaces an earlier one.

    Returns:
        The HTML file.

    Raises:
        OSError: a file cannot be written.
    """
    with style():
        report = make_report(runs)
        page = as_html(report)
        pictures = {d.name: as_png(d.figure) for section in report.sections for d in section.drawings}
    if pictures:
        (folder / REPORT_PICTURES).mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        write_atomically(folder / REPORT_PICTURES / f"{name}.png", png)
    write_atomically(
        folder / REPORT_MARKDOWN, as_markdown(report, lambda drawing: f"{REPORT_PICTURES}/{drawing.name}.png")
    )
    write_atomically(folder / REPORT, page)
    return folder / REPORT


def _of_one(run: RunRecords) -> Report:
    sections = [
        Section("learning", "How it learned", summary.incidents(run), figures.learning([run], same_tokens=True)),
        Section("routing", "What the routers did", (), figures.routing([run])),
        Section("evaluation", "How good it is", *_evaluated(run)),
        Section("atlas", "What each expert does", *_mapped(run)),
        Section("cost", "What it took", (), figures.cost([run])),
    ]
    return Report(
        title=run.name,
        lead=summary.sentence(run),
        tiles=summary.tiles(run),
        sections=[each for each in sections if each.text or each.drawings or each.tables],
        samples=_spread(run.samples),
        facts=summary.where(run),
        command=summary.continuation(run),
        configs=config_yaml([run]),
        missing=run.missing,
        date=_now(),
    )


def _of_several(runs: Sequence[RunRecords]) -> Report:
    same_tokens, names = summary.same_tokenizer(runs), [run.name for run in runs]
    remarks = []
    if not same_tokens:
        remarks.append("the tokenizers differ: only bits per byte are compared, losses of a token are not")
    if not summary.same_text(runs):
        remarks.append("the held-out texts differ: no score of one run can be compared with that of another")
    known = [(bpb, run.name) for run in runs if (bpb := run.last("final_val_bpb")) is not None]
    lead = f"{len(runs)} runs side by side."
    if known and summary.same_text(runs):
        bpb, best = min(known)
        lead += f" {best} predicts held-out stories best, with {bpb:.4f} bits per byte."
    numbers = Rows("", ["", *names], [[name, *cells] for name, cells in summary.comparison(runs, same_tokens)])
    differing = summary.differences(runs)
    settings = [Rows("Settings in which they differ", ["", *names], [[name, *cells] for name, cells in differing])]
    sections = [
        Section("numbers", "Side by side", remarks, (), [numbers, *(settings if differing else [])]),
        Section("learning", "How they learned", (), figures.learning(runs, same_tokens)),
        Section("routing", "What the routers did", (), figures.routing(runs)),
        Section("cost", "What it took", (), figures.cost(runs)),
    ]
    return Report(
        title=" and ".join(names) if len(names) == 2 else f"{len(names)} runs",
        lead=lead,
        tiles=[],
        sections=[each for each in sections if each.text or each.drawings or each.tables],
        samples=[],
        facts=[],
        command="",
        configs=config_yaml(runs),
        missing=[f"{run.name}: {line}" for run in runs for line in run.missing],
        date=_now(),
    )


def _evaluated(run: RunRecords) -> tuple[list[str], list[Drawing], list[Rows]]:
    if run.evaluation is None:
        return [], [], []
    table, remarks = evaluation_rows(run.evaluation)
    return remarks, figures.evaluation(run), table


def _mapped(run: RunRecords) -> tuple[list[str], list[Drawing], list[Rows]]:
    if run.atlas is None:
        return [], [], []
    sentences, tables = atlas_tables(run.atlas)
    return sentences, figures.atlas(run), tables


def _spread(samples: Sequence[Any]) -> list[Any]:
    """The first, the last, and some in between."""
    if len(samples) <= _SHOWN_SAMPLES:
        return [*samples]
    last = len(samples) - 1
    return [samples[round(i * last / (_SHOWN_SAMPLES - 1))] for i in range(_SHOWN_SAMPLES)]


def _pipes(table: Rows) -> list[str]:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "¦") for cell in row) + " |" for row in rows]
    return [f"{table.title}:", "", *lines] if table.title else lines


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
