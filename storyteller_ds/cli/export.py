"""storyteller export: a model for other tools."""

from pathlib import Path

import click

from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.paths import UserPath


@click.command()
@click.option("--checkpoint", required=True, type=UserPath(), help="Run folder or step folder; weights are enough.")
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(["hf", "gguf", "llama2c", "safetensors"]),
    help="hf: for transformers; gguf: for llama.cpp and Ollama; llama2c: for llama2.c; safetensors: "
    "weights under our own names.",
)
@click.option("--output", required=True, type=UserPath(), help="Folder to write; must not exist yet.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16", "q8_0"]),
    default="fp32",
    show_default=True,
    help="Format of the weights; bf16 for hf and safetensors, q8_0 for gguf and llama2c.",
)
@click.option("--push_to_hub", "repo", metavar="REPO", help="Also upload to OWNER/NAME on the Hugging Face hub.")
def export(checkpoint: Path, form: str, output: Path, dtype: str, repo: str | None) -> None:
    """Export a model to the format of another tool, read it back, and compare.

    A model that the format cannot express is refused with the reason. A repository created by --push_to_hub is private.
    """
    from storyteller_ds.interchange import hub

    if repo is not None:
        hub.check_access(repo)
    # Imported here, with torch: --help and refusals need not wait for it.
    import torch

    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.generation.load import load_story_model
    from storyteller_ds.interchange.export import export_model

    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    log = lines_to(stderr_console())
    model = load_story_model(checkpoint, torch.device("cpu"), log)
    log(f"model: {model.step_folder}")
    print(export_model(model, output, form, dtype))
    print(f"export: {output}")
    if repo is not None:
        print(f"hub: {hub.upload(output, repo)}")
