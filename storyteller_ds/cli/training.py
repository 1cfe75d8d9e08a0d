"""What `storyteller train` does on one rank, and how it ends there."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console
from storyteller_kernels.cpu_memory import keep_freed_memory

from storyteller_ds.cli.lines import lines_to
from storyteller_ds.cli.main import speak
from storyteller_ds.cli.session import Session
from storyteller_ds.config import load_config
from storyteller_ds.errors import Interrupted, InterruptedAfterSave, InterruptedSafely, OutOfMemory, StorytellerError
from storyteller_ds.home import home_notice
from storyteller_ds.parallel.build import check_engine
from storyteller_ds.parallel.plan import make_plan
from storyteller_ds.parallel.world import World, pick_device
from storyteller_ds.train.interruption import Interruption

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
    console = Console(stderr=True, quiet=quiet or not world.is_main)
    if (notice := home_notice()) is not None:
        lines_to(console)(notice)
    with Interruption(lines_to(console), speaks=world.is_main) as interruption:
        try:
            loaded = load_config(config, ds_config, overrides, world.size)
            device = pick_device(loaded.run.parallel.device, world.local_rank)
            plan = make_plan(loaded.run, world.size, loaded)
            check_engine(loaded.run, loaded.deepspeed, plan, world, device)
            world.limit_threads()
            if device.type == "cpu":
                keep_freed_memory()
            timeout = loaded.run.parallel.timeout_minutes
            with world.connected(device, timeout) if ds_config else nullcontext():
                folder = output_dir or Path("runs") / loaded.name
                try:
                    Session(loaded, plan, world, device, folder, console, interruption).go(resume)
                except InterruptedAfterSave as error:
                    # A launcher ends all ranks as soon as one has left. Here all are through with everything.
                    world.on_main(partial(speak, str(error)))
                    raise InterruptedAfterSave("") from None
        except InterruptedAfterSave:
            raise
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
