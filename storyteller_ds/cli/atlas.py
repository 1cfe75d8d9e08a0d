"""storyteller atlas: what the experts of a mixture do."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.cli.device_name import DeviceName
from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.given_data import given_data
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    from storyteller_ds.atlas.atlas import Atlas

JSON, MARKDOWN = "atlas.json", "atlas.md"


@click.command()
@click.option(
    "--checkpoint", required=True, type=UserPath(), help="Run folder, step folder, or export for transformers."
)
@click.option(
    "--data",
    type=UserPath(or_word=True),
    help="Text; anything that data.validation takes.  [default: what the run was validated on]",
)
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON.")
@click.option("--output_dir", type=UserPath(), help="Also write atlas.json, atlas.md and plots to this folder.")
@click.option(
    "--tokens", type=click.IntRange(1), default=200_000, show_default=True, help="Approximate number of tokens to read."
)
@click.option(
    "--knock_out_tokens",
    type=click.IntRange(0),
    default=20_000,
    show_default=True,
    help="Approximate number of tokens to read again without each expert; 0: none.",
)
@click.option("--device", type=DeviceName(), default="auto", show_default=True)
@click.argument("overrides", nargs=-1, metavar="[data.field=value]...")
def atlas(
    checkpoint: Path,
    data: str | None,
    as_json: bool,
    output_dir: Path | None,
    tokens: int,
    knock_out_tokens: int,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Show what each expert of a mixture serves, what is lost without it, and which can be removed.

    Prints tables to stdout and progress to stderr. Settings of data say how --data is read.
    """
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    if output_dir is not None:
        _make(output_dir)
    # Imported here, with torch: --help need not wait for it.
    from storyteller_kernels.cpu_sharing import shared_cores

    from storyteller_ds.atlas import report
    from storyteller_ds.atlas.atlas import make_atlas
    from storyteller_ds.console import lines_to, print_table, stderr_console
    from storyteller_ds.distributed.world import pick_device

    log = lines_to(stderr_console())
    place = pick_device(device, None, "--device")
    if place.type == "cpu":
        click.get_current_context().with_resource(shared_cores())
    found = make_atlas(checkpoint, given_data(data, overrides), tokens, knock_out_tokens, place, log)
    if as_json:
        print(report.as_json(found), end="")
    else:
        print(report.heading(found))
        for title, table in report.tables(found):
            print(f"\n{title}:")
            print_table(table)
        print()
        for line in report.verdict(found):
            print(line)
    for line in found.remarks:
        log(line)
    if output_dir is not None:
        log(_write(found, output_dir))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose another --output_dir") from None


def _write(found: "Atlas", folder: Path) -> str:
    """Write all output files and return a line that names them."""
    from storyteller_ds.atlas.plots import save_pictures
    from storyteller_ds.atlas.report import as_json, as_markdown
    from storyteller_ds.durable import write_atomically

    try:
        pictures = save_pictures(found, folder)
        write_atomically(folder / JSON, as_json(found))
        write_atomically(folder / MARKDOWN, as_markdown(found, pictures))
    except OSError as error:
        raise UserError(
            f"{folder} could not be written: {error.strerror or error}; choose another --output_dir"
        ) from None
    names = ", ".join([JSON, MARKDOWN, *(name for name, _ in pictures)])
    return f"written to {folder}: {names}"
