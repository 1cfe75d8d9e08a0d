"""storyteller export: a model for other tools."""

from pathlib import Path

import click

from storyteller_ds.cli.paths import UserPath


@click.command()
@click.option("--checkpoint", required=True, type=UserPath(), help="Run folder or step folder; weights are enough.")
@click.option(
    "--to", "form", required=True, type=click.Choice(["hf"]), help="hf: a folder for transformers and its kin."
)
@click.option("--output", required=True, type=UserPath(), help="Where it goes; must not exist yet.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Format of the weights.",
)
def export(checkpoint: Path, form: str, output: Path, dtype: str) -> None:
    """Write a model in the format of another tool, read it back, and compare.

    What the format cannot express is refused with the reason.
    """
    # Imported here, with torch: --help need not wait for it.
    import torch

    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.generation.load import load_story_model
    from storyteller_ds.interchange.export import export_model

    del form
    log = lines_to(stderr_console())
    model = load_story_model(checkpoint, torch.device("cpu"), log)
    log(f"model: {model.step_folder}")
    print(export_model(model, output, dtype))
    print(f"export: {output}")
