"""What `storyteller generate` does: continue prompts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
from pydantic import ValidationError
from rich.console import Console
from storyteller_kernels.cpu_sharing import shared_cores

from storyteller_ds.cli.conversation import converse
from storyteller_ds.cli.prompts import Prompt, prompts_of, typed
from storyteller_ds.cli.story_printer import print_story
from storyteller_ds.console import lines_to
from storyteller_ds.distributed.world import pick_device
from storyteller_ds.durable import check_output, write_output
from storyteller_ds.errors import UserError, first_problem
from storyteller_ds.generation.load import load_story_model
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story import Story
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.memory import memory_hint
from storyteller_ds.untrusted import for_terminal

_BETWEEN_STORIES = "\n<|endoftext|>\n\n"
_STDOUT = Path("-")


def tell(
    checkpoint: Path,
    prompt: str | None,
    interactive: bool,
    prompts_file: Path | None,
    output: Path | None,
    num_stories: int,
    device: str,
    sampling: Mapping[str, float | None],
) -> None:
    """Tell the stories. For the arguments see the options of cli/generate.py; `sampling` are those of SamplingConfig.

    Raises:
        UserError: something given cannot work, or a prompt does not fit the model's context; the others are told.
    """
    if sum((prompt is not None, interactive, prompts_file is not None)) != 1:
        raise UserError("give one of --prompt, --interactive and --prompts_file")
    if output is not None and prompts_file is None:
        raise UserError("--output goes with --prompts_file; for one prompt, redirect stdout")
    config = _sampling(sampling)
    if output == _STDOUT:
        output = None
    if output is not None:
        check_output(output, "--output")
    say = lines_to(Console(stderr=True))
    prompts = [typed(prompt or "", "--prompt", say)] if prompts_file is None else prompts_of(prompts_file, say)
    if output is not None and prompts_file is not None:
        _refuse_to_replace(prompts_file, output)
    place = pick_device(device, 0, "--device")
    if place.type == "cpu":
        click.get_current_context().with_resource(shared_cores())
    less = "close other programs" if place.type == "cpu" else "use --device cpu"
    with memory_hint(f"the model alone does not fit; {less}"):
        model = load_story_model(checkpoint, place, say)
    say(f"model: {model.step_folder}")
    if interactive:
        converse(model, config, num_stories, say)
        return
    stories, too_long = _prepare(model, config, prompts, num_stories)
    if output is None:
        for i, story in enumerate(stories):
            print(_BETWEEN_STORIES if i else "", end="")
            print_story(story)
    elif stories:
        _write(stories, output, say)
    if cut := sum(story.ran_out_of_context for story in stories):
        which = "the story" if len(stories) == 1 else f"{cut} of {len(stories)} stories"
        say(f"the model's context of {model.decoder.context_length} tokens ended {which}")
    if too_long:
        raise UserError(_reason(too_long, len(prompts)))


def _refuse_to_replace(prompts_file: Path, output: Path) -> None:
    if output.is_file() and prompts_file.is_file() and output.samefile(prompts_file):
        raise UserError(f"--output {output} is the --prompts_file, which the stories would replace; give another file")


def _sampling(values: Mapping[str, float | None]) -> SamplingConfig:
    try:
        return SamplingConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"--{first_problem(error)}") from None


def _prepare(
    model: StoryModel, config: SamplingConfig, prompts: Sequence[Prompt], num_stories: int
) -> tuple[list[Story], list[tuple[Prompt, UserError]]]:
    """The stories, none of them told yet; and the prompts that leave no room, which must not cost the others."""
    stories, too_long = [], []
    for i, prompt in enumerate(prompts):
        numbers = range(i * num_stories, (i + 1) * num_stories)
        try:
            stories += [model.story(prompt.text, config.of_story(number)) for number in numbers]
        except UserError as error:
            too_long.append((prompt, error))
    return stories, too_long


def _write(stories: Sequence[Story], output: Path, say: Callable[[str], None]) -> None:
    text = f"\n{_BETWEEN_STORIES}".join(story.prompt + "".join(story) for story in stories) + "\n"
    try:
        write_output(output, "--output", text)
    except UserError as error:
        print(for_terminal(text), end="", flush=True)
        raise UserError(f"{error}; the stories are on stdout instead") from None
    say(f"{len(stories)} stories: {output}")


def _reason(too_long: Sequence[tuple[Prompt, UserError]], prompts: int) -> str:
    (first, error), *more = too_long
    likewise = f" (likewise line {', '.join(str(prompt.line) for prompt, _ in more)})" if more else ""
    others = f"; the other {prompts - len(too_long)} prompts are told" if prompts > 1 else ""
    return f"{first.where}: {error}{likewise}{others}"
