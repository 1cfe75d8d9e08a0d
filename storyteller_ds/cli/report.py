"""storyteller report: one page about a run, or about several."""

from pathlib import Path

import click

from storyteller_ds.cli.device_name import DeviceName
from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=UserPath(), metavar="RUN...")
@click.option(
    "--output_dir", type=UserPath(), help="Where to write the report.  [default: the run folder; of several: .]"
)
@click.option(
    "--measure",
    is_flag=True,
    help="First evaluate the newest checkpoint and make its expert atlas; both stay in the run folder.",
)
@click.option("--wandb", "to_wandb", is_flag=True, help="Also create a report on Weights & Biases and print its URL.")
@click.option("--device", type=DeviceName(), default="auto", show_default=True, help="For --measure.")
def report(runs: tuple[Path, ...], output_dir: Path | None, measure: bool, to_wandb: bool, device: str) -> None:
    """Make the report of a run, or of several runs side by side.

    Writes report.html, and report.md with pictures; also for a run in progress. Training writes the report of its run
    when it ends.
    """
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    # Imported here, with torch: --help need not wait for it.
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.report.page import write_report
    from storyteller_ds.report.run_records import read_run

    log = lines_to(stderr_console())
    if measure:
        _measure(runs, device)
    found = [read_run(run) for run in runs]
    folder = output_dir or (runs[0] if len(runs) == 1 else Path())
    try:
        print(write_report(found, folder))
    except OSError as error:
        raise UserError(
            f"{folder} could not be written: {error.strerror or error}; choose another --output_dir"
        ) from None
    if len(found) == 1:
        for line in found[0].missing:
            log(f"not shown: {line}")
    if to_wandb:
        from storyteller_ds.report.wandb_report import publish

        print(publish(found))


def _measure(runs: tuple[Path, ...], device: str) -> None:
    from storyteller_kernels.cpu_sharing import shared_cores

    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.distributed.world import pick_device
    from storyteller_ds.report.measure import measure

    place = pick_device(device, None, "--device")
    if place.type == "cpu":
        click.get_current_context().with_resource(shared_cores())
    for run in runs:
        measure(run, place, lines_to(stderr_console()))
