"""storyteller sweep: train with different settings and report which learn best."""

import contextlib
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import Interrupted, InterruptedSafely, TrainingStopped, UserError

if TYPE_CHECKING:
    from storyteller_ds.sweep.results import Result
    from storyteller_ds.sweep.space import Space

RESULTS, PLOT = "sweep.json", "sweep.png"


@click.command()
@click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
@click.option(
    "--vary",
    multiple=True,
    required=True,
    metavar="FIELD=V1,V2,V3",
    help="Values to try; repeat for all combinations. FIELD=LOW..HIGH: a range, from which --trials values are tried.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Length of each trial.  [default: its steps]")
@click.option("--trials", type=click.IntRange(1), metavar="N", help="Number of trials, for ranges.")
@click.option("--output_dir", type=UserPath(), help="Output folder.  [default: runs/NAME-sweep]")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def sweep(
    config: str | None,
    vary: tuple[str, ...],
    minutes: float | None,
    trials: int | None,
    output_dir: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Train with each of several settings and compare bits per byte. The same command again continues."""
    _check_installed()
    from storyteller_ds.sweep.space import read_space

    if minutes is not None:
        if any(override.replace("-", "_").startswith("train.max_minutes=") for override in overrides):
            raise UserError("--minutes is train.max_minutes, which is given too; leave one of them out")
        overrides = (*overrides, f"train.max_minutes={minutes:g}")
    space = read_space(config, vary, overrides)
    if space.has_range and trials is None:
        raise UserError("--vary has a range; say with --trials how many of its values are tried")
    if trials is not None and not space.has_range:
        raise UserError("--trials is for ranges, and --vary lists values: each is tried once; leave --trials out")
    folder = output_dir or Path("runs") / f"{space.load({}).name}-sweep"
    results = _run(space, trials, folder)
    _report(space, results, folder)


def _check_installed() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError("optuna is not installed; pip install optuna")


def _run(space: "Space", trials: int | None, folder: Path) -> list["Result"]:
    """Run the remaining trials; returns all results, including those of earlier commands."""
    # Imported here, with torch: --help and refusals need not wait for it.
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.distributed.world import World
    from storyteller_ds.sweep.study import Study
    from storyteller_ds.training.interruption import ProcessInterruption

    if World.from_environment().size > 1:
        raise UserError("a sweep trains on one device; start it without a launcher")
    console = stderr_console()
    log = lines_to(console)
    with contextlib.closing(Study(space, trials, folder)) as study, ProcessInterruption(log) as interruption:
        try:
            study.run(interruption, console, log)
        except (Interrupted, InterruptedSafely) as error:
            raise InterruptedSafely(f"{error}: {shlex.join(['storyteller', *sys.argv[1:]])}") from None
        return study.results


def _report(space: "Space", results: list["Result"], folder: Path) -> None:
    """Print the table and the paths of the results, and write results and plot to files."""
    from storyteller_ds.console import print_table
    from storyteller_ds.durable import write_atomically
    from storyteller_ds.records.run_folder import written_record
    from storyteller_ds.sweep.plot import save_plot
    from storyteller_ds.sweep.results import as_json, best_command, table

    best = best_command(space, results)
    with written_record(folder / RESULTS):
        write_atomically(folder / RESULTS, as_json(space, results, best))
    print_table(table(results))
    if best is None:
        raise TrainingStopped(f"no trial came to its end; the first: {results[0].reason}")
    save_plot(space, [result for result in results if result.bpb is not None], folder / PLOT)
    print(f"\nresults: {folder / RESULTS}\nplot:    {folder / PLOT}\nbest:    {best}")
