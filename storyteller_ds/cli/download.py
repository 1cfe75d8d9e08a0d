"""storyteller download: datasets of stories from the Hugging Face hub."""

from pathlib import Path

import click

from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.paths import UserPath

_NAMES = ("tinystories", "tinystories-gpt4", "writingprompts", "gutenberg", "bookcorpus")
"""The keys of known_datasets.KNOWN, repeated here so that --help need not import it."""


@click.command()
@click.option("--output_dir", type=UserPath(), help="Where to put a folder for each dataset.")
@click.option(
    "--dataset",
    "names",
    type=click.Choice(_NAMES),
    multiple=True,
    default=("tinystories",),
    show_default=True,
    help="May be given several times.",
)
@click.option("--list", "is_list", is_flag=True, help="List the datasets and exit.")
def download(output_dir: Path | None, names: tuple[str, ...], is_list: bool) -> None:
    """Download datasets of stories from the Hugging Face hub.

    Shows size and license first. The same command again continues an interrupted download.
    """
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.data.download import download as download_dataset
    from storyteller_ds.data.known_datasets import KNOWN

    if is_list:
        for name, known in KNOWN.items():
            print(f"{name}: {known.what} ({known.repository}, {known.revision or 'newest revision'})")
        return
    if output_dir is None:
        raise click.UsageError("--output_dir is missing; name a folder")
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    log = lines_to(stderr_console())
    for name in dict.fromkeys(names):
        print(download_dataset(name, output_dir, log))
