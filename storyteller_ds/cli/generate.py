"""storyteller generate: continue a prompt."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from pydantic import ValidationError
from rich.console import Console
from storyteller_kernels.cpu_sharing import share_cores

from storyteller_ds.cli.lines import lines_to
from storyteller_ds.durable import write_atomically
from storyteller_ds.errors import UserError
from storyteller_ds.inference.generate import generate_ids, prompt_ids, stream_text
from storyteller_ds.inference.load import StoryModel, load_story_model
from storyteller_ds.inference.sampling import SamplingConfig
from storyteller_ds.parallel.world import pick_device
from storyteller_ds.untrusted import for_terminal


@click.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Run folder or step folder.")
@click.option("--prompt", help="Beginning of the story.")
@click.option("--interactive", is_flag=True, help="Ask for prompts until an empty line or Ctrl-D.")
@click.option("--prompts_file", type=click.Path(path_type=Path), help="One prompt a line.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the stories of --prompts_file here.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest token.")
@click.option("--top_k", type=int, default=0, show_default=True, help="Only the k likeliest tokens; 0: all.")
@click.option("--top_p", type=float, default=1.0, show_default=True, help="Only the likeliest up to this probability.")
@click.option("--max_new_tokens", type=int, default=200, show_default=True, help="Longest continuation.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed tells the same story.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
def generate(
    checkpoint: Path,
    prompt: str | None,
    interactive: bool,
    prompts_file: Path | None,
    output: Path | None,
    device: str,
    **sampling: float,
) -> None:
    """Continue a prompt. The story goes to stdout, everything else to stderr."""
    if sum((prompt is not None, interactive, prompts_file is not None)) != 1:
        raise UserError("give one of --prompt, --interactive and --prompts_file")
    if output is not None and prompts_file is None:
        raise UserError("--output goes with --prompts_file; for one prompt, redirect stdout")
    config = _sampling(sampling)
    say = lines_to(Console(stderr=True))
    prompts = _read_prompts(prompts_file) if prompts_file is not None else [prompt or ""]
    place = pick_device(device, 0)
    if place.type == "cpu":
        share_cores()
    model = load_story_model(checkpoint, place, say)
    say(f"model: {model.step_folder}")
    if interactive:
        _talk(model, config, say)
    elif output is not None:
        stories = ["".join(_tell(model, text, config)) for text in prompts]
        write_atomically(output, "\n\n<|endoftext|>\n\n".join(stories) + "\n")
        say(f"{len(stories)} stories: {output}")
    else:
        for i, text in enumerate(prompts):
            if i:
                print("\n<|endoftext|>\n")
            _print_story(model, text, config)


def _sampling(values: dict[str, float]) -> SamplingConfig:
    try:
        return SamplingConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"--{problem['loc'][0]}={problem['input']}: {problem['msg'].lower()}") from None


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--prompts_file {path} cannot be read: {error}; give a UTF-8 file, one prompt a line"
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts_file {path} has no prompts; write one a line")
    return prompts


def _tell(model: StoryModel, prompt: str, config: SamplingConfig) -> Iterator[str]:
    """The prompt and its continuation, piece by piece."""
    start = prompt_ids(model.tokenizer, prompt)
    ids = generate_ids(model.decoder, model.run, start, config, model.tokenizer.end_of_text)
    yield prompt
    yield from stream_text(model.tokenizer, prompt, ids)


def _print_story(model: StoryModel, prompt: str, config: SamplingConfig) -> None:
    for piece in _tell(model, prompt, config):
        print(for_terminal(piece), end="", flush=True)
    print(flush=True)


def _talk(model: StoryModel, config: SamplingConfig, say: Callable[[str], None]) -> None:
    say("Begin a story; an empty line ends.")
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        _print_story(model, line, config)
        # Another story for the same words next time.
        config = config.model_copy(update={"seed": config.seed + 1})
