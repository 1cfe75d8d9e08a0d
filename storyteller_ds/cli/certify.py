"""storyteller certify: what can be given. cli/verdicts.py shows what comes of it."""

import importlib.util
from pathlib import Path

import click

from storyteller_ds.certify.rows import ROWS, Row, select
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.durable import check_output
from storyteller_ds.errors import UserError


@click.command(name="certify")
@click.option("--only", metavar="ROW[,ROW...]", help=f"Only these rows: {', '.join(row.name for row in ROWS)}.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--output", type=UserPath(), help="Write the table and the machine to this file, too.")
def certify_command(only: str | None, as_json: bool, output: Path | None) -> None:
    """Train a tiny mixture on every topology and compare losses, gradients, weights and logits.

    8 steps in fp32, on a seed with clear choices of the routers; what that shows is printed with the table.
    Exits 1 if any row is beyond its tolerance or does not run.
    """
    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    if only is not None and not names:
        raise UserError(f"--only '{only}' names no row; name one of {', '.join(row.name for row in ROWS)}")
    rows = select(names)
    _check_deepspeed(rows)
    if output is not None:
        check_output(output, "--output")
    from storyteller_ds.cli.verdicts import certify_and_show  # torch, for which --help need not wait

    certify_and_show(rows, as_json, output)


def _check_deepspeed(rows: list[Row]) -> None:
    if importlib.util.find_spec("deepspeed") is not None:
        return
    needed = [row.name for row in rows if row.deepspeed is not None]
    if needed:
        possible = ",".join(row.name for row in ROWS if row.deepspeed is None)
        raise UserError(
            f"the rows {', '.join(needed)} need deepspeed, which is not installed; "
            f'pip install "storyteller_ds[deepspeed]" (Linux), or use --only {possible}'
        )
