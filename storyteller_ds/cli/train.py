"""storyteller train, and the main job launch/train.py."""

from contextlib import nullcontext
from pathlib import Path

import click
from rich.console import Console
from storyteller_kernels.cpu_memory import keep_freed_memory

from storyteller_ds.cli.session import Session
from storyteller_ds.config import load_config
from storyteller_ds.errors import Interrupted, StorytellerError
from storyteller_ds.parallel.build import check_engine
from storyteller_ds.parallel.plan import make_plan
from storyteller_ds.parallel.world import World, pick_device

SECONDS_FOR_RANK_0_TO_SPEAK = 20


@click.command()
@click.option("--config", metavar="PRESET_OR_FILE", help="Preset name or YAML file.  [default: quickstart]")
@click.option("--ds_config", type=click.Path(path_type=Path), help="DeepSpeed JSON; without one, a single device.")
@click.option("--output_dir", type=click.Path(path_type=Path), help="Where everything goes.  [default: runs/NAME]")
@click.option("--resume", default="auto", show_default=True, help="auto, never, or the path of a run or a step.")
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
    try:
        loaded = load_config(config, ds_config, overrides)
        device = pick_device(loaded.run.parallel.device, world.local_rank)
        plan = make_plan(loaded.run, world.size)
        check_engine(loaded.run, loaded.deepspeed, plan, world, device)
        world.limit_threads()
        if device.type == "cpu":
            keep_freed_memory()
        timeout = loaded.run.parallel.timeout_minutes
        with world.connected(device, timeout) if ds_config else nullcontext():
            folder = output_dir or Path("runs") / loaded.name
            Session(loaded, plan, world, device, folder, console).go(resume)
    except StorytellerError:
        # Every rank has met the same error; rank 0 is the one that is heard.
        world.wait_to_be_ended(SECONDS_FOR_RANK_0_TO_SPEAK)
        raise
    except KeyboardInterrupt:
        world.wait_to_be_ended(SECONDS_FOR_RANK_0_TO_SPEAK)
        raise Interrupted("interrupted; the same command again continues from the last checkpoint") from None
