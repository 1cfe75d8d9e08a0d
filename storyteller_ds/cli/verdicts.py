"""What `storyteller certify` does: see whether every topology computes the same on this machine, and show it."""

import time
from pathlib import Path

import torch
from rich.console import Console

from storyteller_ds.certify import report
from storyteller_ds.certify.rows import Row, place
from storyteller_ds.certify.run import NotCertified, Verdict, certify
from storyteller_ds.console import lines_to
from storyteller_ds.durable import write_output


def certify_and_show(rows: list[Row], as_json: bool, output: Path | None) -> None:
    """Run these rows, and print and write what came of them.

    Raises:
        NotCertified: a row is beyond its tolerance or did not run.
        UserError: `output` cannot be written.
    """
    began = time.monotonic()
    verdicts = _run(rows)
    seconds = time.monotonic() - began
    if output is not None:
        write_output(output, "--output", report.as_page(verdicts, seconds))
    _show(verdicts, as_json)
    bad = [verdict.placement.row.name for verdict in verdicts if verdict.bad]
    if bad:
        raise NotCertified(f"not certified: {', '.join(bad)} (see above)")


def _run(rows: list[Row]) -> list[Verdict]:
    """All verdicts; each is said as soon as it is there."""
    console = Console(stderr=True)
    say = lines_to(console)
    verdicts = []
    with console.status("starting") as status:
        # On a terminal the running row is a status line; elsewhere only what is finished is said.
        for verdict in certify(place(rows, torch.cuda.device_count()), status.update):
            verdicts.append(verdict)
            problem = f": {verdict.problem}" if verdict.problem else ""
            say(f"{verdict.placement.row.name} {verdict.outcome} ({verdict.seconds:.1f} s){problem}")
    return verdicts


def _show(verdicts: list[Verdict], as_json: bool) -> None:
    if as_json:
        print(report.as_json(verdicts))
        return
    console = Console()
    if console.is_terminal:
        console.print(report.terminal_table(verdicts))
    else:
        print(report.markdown_table(verdicts))
    print(f"\n{report.LEGEND}\n\n{report.SCOPE}")
    for line in report.problems(verdicts):
        print(line)
