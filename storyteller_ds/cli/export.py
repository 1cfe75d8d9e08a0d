"""storyteller export: a model for other tools."""

from pathlib import Path

import click

from storyteller_ds.cli.paths import UserPath


@click.command()
@click.option("--checkpoint", required=True, type=UserPath(), help="Run folder or step folder; weights are enough.")
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(["hf", "gguf"]),
    help="hf: for transformers and its kin; gguf: for llama.cpp and Ollama.",
)
@click.option("--output", required=True, type=UserPath(), help="Folder to write; must not exist yet.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16", "q8_0"]),
    default="fp32",
    show_default=True,
    help="Format of the weights; bf16 for hf, q8_0 for gguf.",
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

    log = lines_to(stderr_console())
    model = load_story_model(checkpoint, torch.device("cpu"), log)
    log(f"model: {model.step_folder}")
    print(export_model(model, output, form, dtype))
    print(f"export: {output}")
