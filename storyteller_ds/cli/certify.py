"""storyteller certify: train on every topology, and print whether all compute the same."""

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.certify.rows import ROWS, Row, place, select
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.durable import check_output
from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    from storyteller_ds.certify.run import Verdict


@click.command()
@click.option("--only", metavar="ROW[,ROW...]", help=f"Only these rows: {', '.join(row.name for row in ROWS)}.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--output", type=UserPath(), help="Also write the table and the machine to this file.")
def certify(only: str | None, as_json: bool, output: Path | None) -> None:
    """Train a tiny mixture of experts on every topology and compare losses, gradients, weights and logits.

    8 steps in fp32, with a seed whose router choices are clear; the table says what that proves. Exits 1 if a row
    exceeds its tolerance or does not run.
    """
    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    if only is not None and not names:
        raise UserError(f"--only '{only}' names no row; name one of {', '.join(row.name for row in ROWS)}")
    rows = select(names)
    _check_deepspeed(rows)
    if output is not None:
        check_output(output, "--output")
    # Imported here, with torch: --help need not wait for it.
    from storyteller_ds.certify import report
    from storyteller_ds.certify.run import NotCertified
    from storyteller_ds.durable import write_output

    began = time.monotonic()
    verdicts = _run(rows)
    seconds = time.monotonic() - began
    if output is not None:
        write_output(output, "--output", report.as_page(verdicts, seconds))
    _print(verdicts, as_json)
    bad = [verdict.placement.row.name for verdict in verdicts if verdict.bad]
    if bad:
        raise NotCertified(f"not certified: {', '.join(bad)} (see above)")


def _check_deepspeed(rows: list[Row]) -> None:
    if importlib.util.find_spec("deepspeed") is not None:
        return
    needed = [row.name for row in rows if row.deepspeed is not None]
    if needed:
        possible = ",".join(row.name for row in ROWS if row.deepspeed is None)
        raise UserError(
            f"the rows {', '.join(needed)} need deepspeed, which is not installed; "
            f"pip install deepspeed==0.19.8 (Linux), or use --only {possible}"
        )


def _run(rows: list[Row]) -> list["Verdict"]:
    """All verdicts; each is printed as soon as it is available."""
    import torch
    from rich.console import Console

    from storyteller_ds.certify.run import certify as verdicts_of
    from storyteller_ds.console import lines_to

    console = Console(stderr=True)
    log = lines_to(console)
    verdicts = []
    with console.status("starting") as status:
        # On a terminal the running row is a status line; elsewhere only finished rows are printed.
        for verdict in verdicts_of(place(rows, torch.cuda.device_count()), status.update):
            verdicts.append(verdict)
            problem = f": {verdict.problem}" if verdict.problem else ""
            log(f"{verdict.placement.row.name} {verdict.outcome} ({verdict.seconds:.1f} s){problem}")
    return verdicts


def _print(verdicts: list["Verdict"], as_json: bool) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from storyteller_ds.certify import report

    if as_json:
        print(report.as_json(verdicts))
        return
    console, table = Console(), report.markdown_table(verdicts)
    if console.is_terminal:
        console.print(Markdown(table))
    else:
        print(table)
    print(f"\n{report.LEGEND}\n\n{report.SCOPE}")
    for line in report.problems(verdicts):
        print(line)
