"""storyteller import: a model of another tool."""

from pathlib import Path

import click

from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.paths import UserPath


@click.command("import")
@click.option(
    "--from",
    "form",
    required=True,
    type=click.Choice(["hf", "llama2c"]),
    help="hf: a folder in Hugging Face's layout; llama2c: a model.bin of llama2.c.",
)
@click.option("--model", required=True, type=UserPath(), help="The folder, or the file.")
@click.option("--tokenizer", type=UserPath(), help="tokenizer.bin of llama2.c; by default that beside the model.")
@click.option("--output_dir", required=True, type=UserPath(), help="Run folder to write; must not exist yet.")
def import_(form: str, model: Path, tokenizer: Path | None, output_dir: Path) -> None:
    """Import a model of another tool into a run folder.

    Pickles can run code and are never read. A model that storyteller cannot compute exactly is refused.
    """
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    # Imported here, with torch: --help need not wait for it.
    from storyteller_ds.interchange.load import import_model

    print(f"checkpoint: {import_model(form, model, tokenizer, output_dir)}")
