"""storyteller train, and the main job launch/train.py: one rank of a run, and how that rank ends."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import (
    Interrupted,
    InterruptedAfterSave,
    InterruptedSafely,
    OutOfMemory,
    StorytellerError,
    UserError,
)

if TYPE_CHECKING:
    from storyteller_ds.distributed.world import World
    from storyteller_ds.records.trained_run import TrainedRun

SECONDS_FOR_RANK_0 = 20
"""Time for rank 0 to print its error line: a launcher ends all ranks as soon as one exits."""
SECONDS_IF_ALONE = 3
"""The same, if this rank may be the only one with the error."""
SECONDS_IF_INTERRUPTED = 2
"""The same, if the end was requested, perhaps of this rank only."""


class _Train(click.Command):
    """Shows how to write a setting that was given as an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, [*args])
        except click.NoSuchOption as error:
            from storyteller_ds.config.explain import sections, settings  # imports all config modules

            name = error.option_name.lstrip("-")
            fields = [setting.name for section in sections() for setting in settings(section)]
            meant = [field for field in fields if name in (field, field.rpartition(".")[2])]
            if not meant:
                raise
            for word, following in zip(args, [*args[1:], "VALUE"], strict=True):
                option, is_joined, value = word.partition("=")
                if option.replace("-", "_").lstrip("_") == name:
                    value = value if is_joined else following
                    break
            raise UserError(
                f"--{name} is a setting, not an option; did you mean {' or '.join(f'{m}={value}' for m in meant)}?"
            ) from None


@click.command(cls=_Train)
@click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
@click.option("--ds_config", type=UserPath(), help="DeepSpeed JSON; without one, a single device.")
@click.option("--output_dir", type=UserPath(), help="Output folder.  [default: runs/NAME]")
@click.option(
    "--resume",
    type=UserPath(or_word=True),
    default="auto",
    show_default=True,
    help="auto, never, or the path of a run or a step.",
)
@click.option(
    "--init_from",
    type=UserPath(),
    metavar="RUN",
    help="Start from the weights, model and tokenizer of a run or a step, with a new optimizer and schedule.",
)
@click.option("--tokenizer_path", type=UserPath(), help="Same as tokenizer.path=PATH.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option(
    "--local_rank", type=int, hidden=True, help="Passed by the deepspeed launcher; LOCAL_RANK has the same value."
)
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def train(
    config: str | None,
    ds_config: Path | None,
    output_dir: Path | None,
    resume: str,
    init_from: Path | None,
    tokenizer_path: Path | None,
    quiet: bool,
    local_rank: int | None,  # noqa: ARG001  # see its help
    overrides: tuple[str, ...],
) -> None:
    """Train a story model. Any field of the run config can be set as section.field=value."""
    # Imported here, with torch: --help need not wait for it.
    from storyteller_ds.cli.main import print_end
    from storyteller_ds.config import load_config
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.distributed.failures import backend_failure
    from storyteller_ds.distributed.world import World
    from storyteller_ds.home import home_notice
    from storyteller_ds.training.initial import load_initial_config
    from storyteller_ds.training.interruption import ProcessInterruption
    from storyteller_ds.training.trainer import Trainer

    if tokenizer_path is not None:
        overrides = (*overrides, f"tokenizer.path={json.dumps(str(tokenizer_path))}")
    world = World.from_environment()
    console = stderr_console(quiet=quiet or not world.is_main)
    if (notice := home_notice()) is not None:
        lines_to(console)(notice)
    with ProcessInterruption(lines_to(console), reports=world.is_main) as interruption:
        try:
            if init_from is None:
                loaded = load_config(config, overrides, ds_config=ds_config, ranks=world.size)
            else:
                loaded = load_initial_config(
                    init_from, config, overrides, ds_config=ds_config, ranks=world.size, log=lines_to(console)
                )
            trainer = Trainer(loaded, output_dir, resume=resume, console=console, command=_command(world))
            run = trainer.train(interruption, print_end)
            if world.is_main and not quiet:
                _print_where(run, next(iter(loaded.run.train.sample_prompts), "Once upon a time"))
        except InterruptedAfterSave:
            raise InterruptedAfterSave("") from None  # the line has already been printed
        except (Interrupted, InterruptedSafely) as error:
            world.wait_to_be_ended(SECONDS_IF_INTERRUPTED)
            # This also holds if only this rank was signaled: its launcher then ends rank 0 too.
            raise type(error)(str(error) if world.is_main else "") from None
        except OutOfMemory:
            world.wait_to_be_ended(SECONDS_IF_ALONE)
            raise
        except StorytellerError:
            # Every rank has the same error, and rank 0 reports it.
            world.wait_to_be_ended(SECONDS_FOR_RANK_0)
            raise
        except RuntimeError as error:
            world.wait_if_peer_lost(error, SECONDS_FOR_RANK_0)
            if (failure := backend_failure(error)) is not None:
                raise UserError(f"rank {world.rank}: {failure}") from None
            raise


def _command(world: "World") -> str:
    """The command that continues this run: as typed, or for several ranks on one machine through our launcher."""
    from storyteller_ds.redaction import redacted

    train, *given = [word for word in sys.argv[1:] if not word.startswith("--local_rank")] or ["train"]
    if world.size == 1:
        return redacted(shlex.join(["storyteller", train, *given]))
    command = redacted(shlex.join(["storyteller", "launch", "--num_accelerators", str(world.local_size), "--", *given]))
    if world.size == world.local_size:
        return command
    return f"{command}    # on {world.size} ranks, with the launcher and the hosts that started it"


def _print_where(run: "TrainedRun", prompt: str) -> None:
    """Print where everything is, and what to type next."""
    from storyteller_ds.records.run_folder import METRICS, REPORT, SAMPLES

    for label, record in (("report:", REPORT), ("metrics:", METRICS), ("samples:", SAMPLES)):
        if (run.folder / record).exists():
            print(f"{label:<12}{run.folder / record}")
    print(f"checkpoint: {run.checkpoint}")
    is_here = run.checkpoint is None or run.checkpoint.is_relative_to(run.folder)
    model = run.folder if is_here else run.checkpoint  # --resume may have named another run that is already finished
    command = shlex.join(["storyteller", "generate", "--checkpoint", str(model), "--prompt", prompt])
    print(f"try:        {command}", flush=True)
