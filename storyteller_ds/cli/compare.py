"""storyteller compare: whether a mixture is worth it on this machine."""

import shlex
import sys
from pathlib import Path

import click

from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError

PAGE, PLOT, RESULTS = "compare.md", "compare.png", "compare.json"


@click.command()
@click.option(
    "--config",
    type=UserPath(or_word=True),
    default="quickstart",
    show_default=True,
    metavar="PRESET_OR_FILE",
    help="A mixture.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Training time of each run.  [default: 5]")
@click.option("--tokens", type=click.FloatRange(0, min_open=True), help="Tokens of each run, instead of --minutes.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each model.")
@click.option(
    "--rates",
    default="1",
    show_default=True,
    metavar="FACTOR[,FACTOR...]",
    help="Learning rates to try, as factors of each model's own.",
)
@click.option(
    "--at_once",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs at the same time, each with its share of the cores.",
)
@click.option("--output_dir", type=UserPath(), help="Output folder.  [default: runs/compare-CONFIG]")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def compare(
    config: str,
    minutes: float | None,
    tokens: float | None,
    seeds: int,
    rates: str,
    at_once: int,
    output_dir: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Train a mixture and its dense twins on the same batches and compare them.

    One twin has as much work per token, the other as many parameters. First a step of each is timed: minutes become
    steps, and the machine is then free for other work. The same command again continues.
    """
    if minutes is not None and tokens is not None:
        raise UserError("--minutes and --tokens are two budgets; give one of them")
    # Imported here, with torch: --help need not wait for it.
    from storyteller_ds.bench.quality import Comparison
    from storyteller_ds.bench.twins import twins_of
    from storyteller_ds.bench.worth_report import WorthReport
    from storyteller_ds.console import lines_to, print_table, stderr_console
    from storyteller_ds.durable import write_atomically
    from storyteller_ds.records.run_folder import written_record

    twins = twins_of(config, overrides, _factors(rates))
    folder = output_dir or Path("runs") / f"compare-{Path(config).stem}"
    whole = None if tokens is None else round(tokens)
    comparison = Comparison(twins.recipes, minutes or 5.0, seeds, twins.overrides, folder, whole, at_once)
    log = lines_to(stderr_console())
    runs = sum(comparison.runs.values())
    each = f"{comparison.minutes:g} min" if whole is None else f"{whole:,} tokens"
    log(f"{runs} runs of {each} each, in {folder}")
    pace = comparison.pace(log)
    report = WorthReport(comparison, pace, comparison.run(log), shlex.join(["storyteller", *sys.argv[1:]]))
    for name, text in {PAGE: report.as_page(PLOT), RESULTS: report.as_json()}.items():
        with written_record(folder / name):
            write_atomically(folder / name, text)
    report.save_plot(folder / PLOT)
    print_table(report.table())
    print(f"{report.verdict}\n\nreport: {folder / PAGE}\nplot:   {folder / PLOT}")


def _factors(text: str) -> tuple[float, ...]:
    """The factors given with --rates.

    Raises:
        UserError: the text is not a list of factors.
    """
    try:
        factors = tuple(float(each) for each in text.split(","))
    except ValueError:
        factors = ()
    if not factors or not all(0 < factor < float("inf") for factor in factors):
        raise UserError(f"--rates={text} is not a list of factors; give some such as 0.5,1,2")
    return factors
