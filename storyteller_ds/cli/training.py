"""What `storyteller train` does on one rank, and how it ends there."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from storyteller_ds.cli.main import speak
from storyteller_ds.config import load_config
from storyteller_ds.console import lines_to, stderr_console
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import Interrupted, InterruptedAfterSave, InterruptedSafely, OutOfMemory, StorytellerError
from storyteller_ds.home import home_notice
from storyteller_ds.training.interruption import ProcessInterruption
from storyteller_ds.training.run_folder import METRICS, SAMPLES
from storyteller_ds.training.trained_run import TrainedRun
from storyteller_ds.training.trainer import Trainer

SECONDS_FOR_RANK_0_TO_SPEAK = 20
SECONDS_IF_ALONE = 3
"""Where this rank may be the only one that has met the error."""
SECONDS_IF_INTERRUPTED = 2
"""Where the end was asked for, and maybe of this rank alone."""


def train_on_this_rank(
    config: str | None,
    ds_config: Path | None,
    output_dir: Path | None,
    resume: str,
    quiet: bool,
    overrides: Sequence[str],
) -> None:
    """Train from beginning to end. For the arguments see the options of cli/train.py.

    Raises:
        StorytellerError: a launcher ends all ranks as soon as one has left, so rank 0 is given the time to speak first.
    """
    world = World.from_environment()
    console = stderr_console(quiet=quiet or not world.is_main)
    if (notice := home_notice()) is not None:
        lines_to(console)(notice)
    with ProcessInterruption(lines_to(console), speaks=world.is_main) as interruption:
        try:
            loaded = load_config(config, overrides, ds_config=ds_config, ranks=world.size)
            run = Trainer(loaded, output_dir, resume=resume, console=console).train(interruption, speak)
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
    """Where everything is, on stdout, and what to type next."""
    for label, record in (("metrics:", METRICS), ("samples:", SAMPLES)):
        if (run.folder / record).exists():
            print(f"{label:<12}{run.folder / record}")
    print(f"checkpoint: {run.checkpoint}")
    is_here = run.checkpoint is None or run.checkpoint.is_relative_to(run.folder)
    model = run.folder if is_here else run.checkpoint  # --resume may have named another run, which is over
    print(
        f'try:        storyteller generate --checkpoint {shlex.quote(str(model))} --prompt "Once upon a time"',
        flush=True,
    )
