"""storyteller generate: continue prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.cli.device_name import DeviceName
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.cli.prompts import Prompt, prompts_of, typed
from storyteller_ds.durable import check_output, write_output
from storyteller_ds.errors import UserError
from storyteller_ds.memory import memory_hint
from storyteller_ds.untrusted import for_terminal

if TYPE_CHECKING:
    from storyteller_ds.generation.sampling import SamplingConfig
    from storyteller_ds.generation.story import Story
    from storyteller_ds.generation.story_model import StoryModel

_BETWEEN_STORIES = "\n<|endoftext|>\n\n"
_STDOUT = Path("-")


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
@click.option("--device", type=DeviceName(), default="auto", show_default=True)
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

    The same command gives the same stories. Exits 2 if a prompt does not fit the model's context; the others are
    continued.
    """
    # Imported here, with torch: --help need not wait for it.
    from rich.console import Console
    from storyteller_kernels.cpu_sharing import shared_cores

    from storyteller_ds.cli.conversation import converse
    from storyteller_ds.cli.story_printer import print_story
    from storyteller_ds.console import lines_to
    from storyteller_ds.distributed.world import pick_device
    from storyteller_ds.generation.load import load_story_model
    from storyteller_ds.generation.sampling import sampling_config

    if sum((prompt is not None, interactive, prompts_file is not None)) != 1:
        raise UserError("give one of --prompt, --interactive and --prompts_file")
    if output is not None and prompts_file is None:
        raise UserError("--output goes with --prompts_file; for one prompt, redirect stdout")
    config = sampling_config(sampling, "--")
    if output == _STDOUT:
        output = None
    if output is not None:
        check_output(output, "--output")
    log = lines_to(Console(stderr=True))
    prompts = [typed(prompt or "", "--prompt", log)] if prompts_file is None else prompts_of(prompts_file, log)
    if output is not None and prompts_file is not None:
        _refuse_to_replace(prompts_file, output)
    place = pick_device(device, None, "--device")
    if place.type == "cpu":
        click.get_current_context().with_resource(shared_cores())
    less = "close other programs" if place.type == "cpu" else "use --device cpu"
    with memory_hint(f"the model alone does not fit; {less}"):
        model = load_story_model(checkpoint, place, log)
    log(f"model: {model.step_folder}")
    if interactive:
        converse(model, config, num_stories, log)
        return
    stories, too_long = _prepare(model, config, prompts, num_stories)
    if output is None:
        for i, story in enumerate(stories):
            print(_BETWEEN_STORIES if i else "", end="")
            print_story(story)
    elif stories:
        _write(stories, output, log)
    if cut := sum(story.ran_out_of_context for story in stories):
        which = "the story" if len(stories) == 1 else f"{cut} of {len(stories)} stories"
        log(f"the model's context of {model.decoder.context_length} tokens ended {which}")
    if too_long:
        others = f"; the other {len(prompts) - len(too_long)} prompts are continued" if len(prompts) > 1 else ""
        raise UserError("; ".join(too_long) + others)


def _refuse_to_replace(prompts_file: Path, output: Path) -> None:
    if output.is_file() and prompts_file.is_file() and output.samefile(prompts_file):
        raise UserError(f"--output {output} is the --prompts_file, which the stories would replace; give another file")


def _prepare(
    model: "StoryModel", config: "SamplingConfig", prompts: Sequence[Prompt], num_stories: int
) -> tuple[list["Story"], list[str]]:
    """The stories, none of them generated yet; and the prompts that leave no room, which must not stop the others."""
    stories, too_long = [], []
    for i, prompt in enumerate(prompts):
        numbers = range(i * num_stories, (i + 1) * num_stories)
        try:
            stories += [model.story(prompt.text, config.of_story(number)) for number in numbers]
        except UserError as error:
            too_long.append(f"{prompt.where}: {error}")
    return stories, too_long


def _write(stories: Sequence["Story"], output: Path, log: Callable[[str], None]) -> None:
    text = f"\n{_BETWEEN_STORIES}".join(story.prompt + "".join(story) for story in stories) + "\n"
    try:
        write_output(output, "--output", text)
    except UserError as error:
        print(for_terminal(text), end="", flush=True)
        raise UserError(f"{error}; the stories are on stdout instead") from None
    log(f"{len(stories)} stories: {output}")
