"""storyteller generate: continue prompts."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from storyteller_ds.cli.device_name import DeviceName
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.cli.prompts import Prompt, prompts_of, typed
from storyteller_ds.durable import check_output
from storyteller_ds.errors import UserError
from storyteller_ds.memory import memory_hint

if TYPE_CHECKING:
    from storyteller_ds.generation.fastest import Precision
    from storyteller_ds.generation.sampling import SamplingConfig

_S = TypeVar("_S")
_STDOUT = Path("-")


@click.command()
@click.option(
    "--checkpoint", required=True, type=UserPath(), help="Run folder, step folder, or export for transformers."
)
@click.option("--prompt", help="Beginning of the story.")
@click.option("--interactive", is_flag=True, help="Ask for prompts until an empty line or Ctrl-D.")
@click.option("--prompts_file", type=UserPath(or_stream=True), help="One prompt a line; - is stdin.")
@click.option("--output", type=UserPath(or_stream=True), help="Write the stories of --prompts_file here; - is stdout.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per story, with its tokens and experts.")
@click.option(
    "-n", "--num_stories", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Stories per prompt."
)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest token.")
@click.option("--top_k", type=int, default=0, show_default=True, help="Only the k likeliest tokens; 0: all.")
@click.option(
    "--top_p",
    type=float,
    default=1.0,
    show_default=True,
    help="Only the likeliest tokens that together reach this probability.",
)
@click.option(
    "--min_p",
    type=float,
    default=0.0,
    show_default=True,
    help="Only tokens with this share of the likeliest's probability.",
)
@click.option("--repetition_penalty", type=float, default=1.0, show_default=True, help="Above 1: fewer repetitions.")
@click.option(
    "--presence_penalty",
    type=float,
    default=0.0,
    show_default=True,
    help="Above 0: fewer words that the story already has.",
)
@click.option("--frequency_penalty", type=float, default=0.0, show_default=True, help="The same, once per occurrence.")
@click.option("--stop", multiple=True, help="End before this text; may be given several times.")
@click.option("--max_new_tokens", type=int, help="Longest continuation.  [default: as long as the context has room]")
@click.option(
    "--past_context",
    type=click.Choice(["stop", "slide"]),
    default="stop",
    show_default=True,
    help="When the context is full: stop, or forget its first half and continue.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the first story; each following story has the next seed.",
)
@click.option("--device", type=DeviceName(), default="auto", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Format of weights and products; auto: as in training on a GPU, else fp32.",
)
@memory_hint("a shorter prompt or fewer --max_new_tokens need less; of a GPU's memory, --device cpu needs none")
def generate(
    checkpoint: Path,
    prompt: str | None,
    interactive: bool,
    prompts_file: Path | None,
    output: Path | None,
    as_json: bool,
    num_stories: int,
    device: str,
    precision: "Precision",
    stop: tuple[str, ...],
    **sampling: float | str | None,
) -> None:
    """Continue a prompt. The story goes to stdout, everything else to stderr.

    The same command gives the same stories. Exits 2 if a prompt does not fit the model's context; the others are
    continued. In --interactive, /help lists the commands.
    """
    # Imported here, with torch: --help need not wait for it.
    from rich.console import Console
    from storyteller_kernels.cpu_sharing import shared_cores

    from storyteller_ds.cli.conversation import Conversation
    from storyteller_ds.cli.story_file import BETWEEN_STORIES, write_stories
    from storyteller_ds.cli.story_printer import print_story
    from storyteller_ds.console import lines_to
    from storyteller_ds.distributed.world import pick_device
    from storyteller_ds.generation.decode import check_sampling
    from storyteller_ds.generation.sampling import sampling_config
    from storyteller_ds.generation.torch_stepper import TorchStepper
    from storyteller_ds.generation.trace import TracedStory
    from storyteller_ds.interchange.load import open_model

    if sum((prompt is not None, interactive, prompts_file is not None)) != 1:
        raise UserError("give one of --prompt, --interactive and --prompts_file")
    if output is not None and prompts_file is None:
        raise UserError("--output goes with --prompts_file; for one prompt, redirect stdout")
    if as_json and (interactive or output not in (None, _STDOUT)):
        raise UserError("--json goes to stdout, for --prompt or --prompts_file; redirect it")
    log = lines_to(Console(stderr=True))
    stop = tuple(typed(text, "--stop", log).text for text in stop)
    config = sampling_config({**sampling, "stop": stop}, "--")
    if output == _STDOUT:
        output = None
    if output is not None:
        check_output(output, "--output")
    prompts = [typed(prompt or "", "--prompt", log)] if prompts_file is None else prompts_of(prompts_file, log)
    if output is not None and prompts_file is not None:
        _refuse_to_replace(prompts_file, output)
    place = pick_device(device, None, "--device")
    if place.type == "cpu":
        click.get_current_context().with_resource(shared_cores())
    less = "close other programs" if place.type == "cpu" else "use --device cpu"
    with memory_hint(f"the model alone does not fit; {less}"):
        model = open_model(checkpoint, place, log, precision)
    log(f"model: {model.step_folder}")
    check_sampling(model.decoder, config, "--")
    if interactive:
        Conversation(model, config, num_stories, log).run()
        return
    if as_json:
        begin = partial(TracedStory, model, TorchStepper(model.decoder, model.run))
        fitting, too_long = _sorted_out(begin, config, prompts)
        for each in _begun(begin, config, fitting, num_stories):
            print(json.dumps(each.record()), flush=True)
    else:
        fitting, too_long = _sorted_out(model.story, config, prompts)
        stories = _begun(model.story, config, fitting, num_stories)
        if output is None:
            for i, story in enumerate(stories):
                print(BETWEEN_STORIES if i else "", end="")
                print_story(story, log)
        elif fitting:
            write_stories(model.texts(), stories, len(fitting) * num_stories, output, log)
    if too_long:
        others = f"; the other {len(prompts) - len(too_long)} prompts are continued" if len(prompts) > 1 else ""
        raise UserError("; ".join(too_long) + others)


def _refuse_to_replace(prompts_file: Path, output: Path) -> None:
    if output.is_file() and prompts_file.is_file() and output.samefile(prompts_file):
        raise UserError(f"--output {output} is the --prompts_file, which the stories would replace; give another file")


def _sorted_out(
    begin: Callable[[str, "SamplingConfig"], object], config: "SamplingConfig", prompts: Sequence[Prompt]
) -> tuple[list[tuple[int, str]], list[str]]:
    """Prompts that fit, with their numbers, and the errors of those that do not, which must not stop the others."""
    fitting, too_long = [], []
    for number, prompt in enumerate(prompts):
        try:
            begin(prompt.text, config)
            fitting.append((number, prompt.text))
        except UserError as error:
            too_long.append(f"{prompt.where}: {error}")
    return fitting, too_long


def _begun(
    begin: Callable[[str, "SamplingConfig"], _S],
    config: "SamplingConfig",
    prompts: Sequence[tuple[int, str]],
    num_stories: int,
) -> Iterator[_S]:
    """The stories of the prompts, each started lazily, so that memory does not grow with their number."""
    for number, prompt in prompts:
        for i in range(number * num_stories, (number + 1) * num_stories):
            yield begin(prompt, config.of_story(i))
