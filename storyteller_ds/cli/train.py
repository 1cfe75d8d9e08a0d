"""storyteller train, and the main job launch/train.py."""

import shlex
from pathlib import Path

import click
from rich.console import Console

from storyteller_ds.cli.main import speak
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.config import load_config
from storyteller_ds.console import lines_to
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import Interrupted, InterruptedAfterSave, InterruptedSafely, OutOfMemory, StorytellerError
from storyteller_ds.home import home_notice
from storyteller_ds.training.interruption import ProcessInterruption
from storyteller_ds.training.run_folder import METRICS
from storyteller_ds.training.trained_run import TrainedRun
from storyteller_ds.training.trainer import Trainer

SECONDS_FOR_RANK_0_TO_SPEAK = 20
SECONDS_IF_ALONE = 3
"""Where this rank may be the only one that has met the error."""
SECONDS_IF_INTERRUPTED = 2
"""Where the end was asked for, and maybe of this rank alone."""


@click.command()
@click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
@click.option("--ds_config", type=UserPath(), help="DeepSpeed JSON; without one, a single device.")
@click.option("--output_dir", type=UserPath(), help="Where everything goes.  [default: runs/NAME]")
@click.option(
    "--resume",
    type=UserPath(or_word=True),
    default="auto",
    show_default=True,
    help="auto, never, or the path of a run or a step.",
)
@click.option("--quiet", is_flag=True, help="No progress, only errors.")
@click.option("--local_rank", type=int, hidden=True, help="Passed by the deepspeed launcher; LOCAL_RANK says the same.")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def train(
    config: str | None,
    ds_config: Path | None,
    output_dir: Path | None,
    resume: str,
    quiet: bool,
    local_rank: int | None,  # noqa: ARG001  # see its help
    overrides: tuple[str, ...],
) -> None:
    """Train a story model. Any field of the run config can be set as section.field=value."""
    world = World.from_environment()
    console = Console(stderr=True, quiet=quiet or not world.is_main)
    if (notice := home_notice()) is not None:
        lines_to(console)(notice)
    with ProcessInterruption(lines_to(console), speaks=world.is_main) as interruption:
        try:
            loaded = load_config(config, overrides, ds_config=ds_config, ranks=world.size)
            trainer = Trainer(loaded, output_dir, resume=resume, console=console)
            run = trainer.train(interruption, speak)
            if world.is_main and not quiet:
                _print_where(run)
        except InterruptedAfterSave:
            raise InterruptedAfterSave("") from None  # it has been said
        except (Interrupted, InterruptedSafely) as error:
            world.wait_to_be_ended(SECONDS_IF_INTERRUPTED)
            # Also where the signal was for this rank alone: its launcher then ends rank 0 too.
            raise type(error)(str(error) if world.is_main else "") from None
        except OutOfMemory:
            world.wait_to_be_ended(SECONDS_IF_ALONE)
            raise
        except StorytellerError:
            # Every rank has met the same error; rank 0 is the one that is heard.
            world.wait_to_be_ended(SECONDS_FOR_RANK_0_TO_SPEAK)
            raise
        except RuntimeError as error:
            world.wait_if_peer_lost(error, SECONDS_FOR_RANK_0_TO_SPEAK)
            raise


def _print_where(run: TrainedRun) -> None:
    """Where everything is, on stdout."""
    print(f"metrics:    {run.folder / METRICS}")
    if run.samples is not None:
        print(f"samples:    {run.samples}")
    print(f"checkpoint: {run.checkpoint}")
    print(
        f'try:        storyteller generate --checkpoint {shlex.quote(str(run.folder))} --prompt "Once upon a time"',
        flush=True,
    )
