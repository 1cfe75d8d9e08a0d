"""storyteller generate: what can be given. cli/telling.py does it."""

from pathlib import Path

import click

from storyteller_ds.cli.paths import UserPath
from storyteller_ds.memory import memory_hint


@click.command()
@click.option("--checkpoint", required=True, type=UserPath(), help="Run folder or step folder; weights are enough.")
@click.option("--prompt", help="Beginning of the story.")
@click.option("--interactive", is_flag=True, help="Ask for prompts until an empty line or Ctrl-D.")
@click.option("--prompts_file", type=UserPath(or_stream=True), help="One prompt a line; - is stdin.")
@click.option("--output", type=UserPath(or_stream=True), help="Write the stories of --prompts_file here; - is stdout.")
@click.option("--num_stories", "-n", type=click.IntRange(1), default=1, show_default=True, help="For each prompt.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest token.")
@click.option("--top_k", type=int, default=0, show_default=True, help="Only the k likeliest tokens; 0: all.")
@click.option("--top_p", type=float, default=1.0, show_default=True, help="Only the likeliest up to this probability.")
@click.option("--max_new_tokens", type=int, help="Longest continuation.  [default: as long as the context has room]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first story; each next has the next seed.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@memory_hint("a shorter prompt or fewer --max_new_tokens need less; of a GPU's memory, --device cpu needs none")
def generate(
    checkpoint: Path,
    prompt: str | None,
    interactive: bool,
    prompts_file: Path | None,
    output: Path | None,
    num_stories: int,
    device: str,
    **sampling: float | None,
) -> None:
    """Continue a prompt. The story goes to stdout, everything else to stderr.

    The same command tells the same stories. Exits 2 if a prompt does not fit the model's context; the others are told.
    """
    from storyteller_ds.cli.telling import tell  # torch, for which --help need not wait

    tell(checkpoint, prompt, interactive, prompts_file, output, num_stories, device, sampling)
