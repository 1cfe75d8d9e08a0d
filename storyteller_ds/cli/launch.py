"""storyteller launch: DeepSpeed's launcher, with checks of its options that it does not do itself."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from storyteller_ds.cli.paths import UserPath
from storyteller_ds.cli.train import train
from storyteller_ds.distributed.hostfile import (
    check_arguments,
    check_environment_file,
    check_exported_environment,
    check_filter,
    check_host,
    read_hostfile,
)
from storyteller_ds.distributed.ports import free_port
from storyteller_ds.distributed.supervision.launchers import run_launchers
from storyteller_ds.errors import ConfigError, UserError
from storyteller_ds.home import home_notice

_DEFAULT_HOSTFILE = Path("/job/hostfile")
"""The hostfile that DeepSpeed reads by default if it exists (DLTS_HOSTFILE in deepspeed/launcher/runner.py)."""
_ENVIRONMENT_FILE = Path(".deepspeed_env")
_DEVICES = Path("/dev")
_GPUS = ("nvidiactl", "nvmap", "dxg", "kfd")
"""Device files of NVIDIA's driver, Jetson's driver, WSL, and AMD's driver."""


class _Launch(click.Command):
    """Tells the user where training options belong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            if not any(name in parameter.opts for parameter in train.params):
                raise
            raise UserError(
                f"{name} is an option of storyteller train, and those come after --: "
                f"storyteller launch [OPTIONS] -- {name} ..."
            ) from None


@click.command(
    cls=_Launch,
    epilog="What follows -- is for storyteller train: storyteller launch --num_accelerators 2 -- --ds_config F seed=1",
)
@click.option("--hostfile", "-H", type=UserPath(), help="File with a line HOST slots=N per machine.")
@click.option("--include", "-i", default="", metavar="HOST[:SLOT,..][@..]", help="Only these hosts and slots.")
@click.option("--exclude", "-e", default="", metavar="HOST[:SLOT,..][@..]", help="All except these hosts and slots.")
@click.option("--num_nodes", type=click.IntRange(1), help="Use this many hosts, from the first.")
@click.option("--num_accelerators", "--num_gpus", type=click.IntRange(1), help="Ranks on each host.")
@click.option("--master_addr", help="Address at which the others reach the first host.")
@click.option("--master_port", type=click.IntRange(1, 65535), help="[default: a free one for a local run, else 29500]")
@click.option("--no_ssh", is_flag=True, help="Start only the ranks of this machine, --node_rank of the hostfile.")
@click.option("--node_rank", type=click.IntRange(0), help="With --no_ssh: which host of the hostfile this one is.")
@click.option("--ssh_port", type=click.IntRange(1, 65535), help="ssh port of all hosts.")
@click.option("--no_ssh_check", is_flag=True, help="Do not test ssh to the first host first.")
@click.option("--force_multi", is_flag=True, help="Use ssh even for a single host.")
@click.argument("training", nargs=-1, type=click.UNPROCESSED, metavar="-- [ARGUMENTS OF storyteller train]")
def launch(training: tuple[str, ...], **options: object) -> NoReturn:
    """Train on several ranks, here or on the machines of a hostfile (through ssh, with pdsh).

    Checks hostfile, filters and environment file, which DeepSpeed passes to ssh and to remote shells as they are,
    and then runs the `deepspeed` command. On this machine alone, signals are passed on to the ranks.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("deepspeed is not installed; pip install deepspeed==0.19.8 (Linux)")
    if not options["hostfile"] and _DEFAULT_HOSTFILE.is_file():
        options["hostfile"] = _DEFAULT_HOSTFILE
    _check(options, training)
    if not options["hostfile"] and not options["master_port"]:
        options["master_port"] = free_port()
    remote = bool(options["hostfile"]) and not options["no_ssh"]
    # The ranks report their own errors better than the launcher does.
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet" if remote else "--log_level=critical"]
    command += [*_as_arguments(options), "--no_local_rank", "--module", "storyteller_ds", "train", *training]
    sys.stdout.flush()
    sys.stderr.flush()
    if remote:
        os.execv(command[0], command)
    if (notice := home_notice()) is not None:  # the ranks inherit the variables and do not repeat it
        click.echo(notice, err=True)
    if not _has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or each of DeepSpeed's launchers warns that it found no GPU
    sys.exit(run_launchers(command))


def _has_gpu() -> bool:
    """Whether this machine has a usable GPU, without importing torch, which takes seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any((_DEVICES / name).exists() for name in _GPUS)


def _check(options: dict[str, object], training: tuple[str, ...]) -> None:
    hostfile, include, exclude = options["hostfile"], str(options["include"]), str(options["exclude"])
    slots: dict[str, int | None] = {"localhost": None}
    if isinstance(hostfile, Path):
        slots = {**read_hostfile(hostfile)}
    if include and exclude:
        raise ConfigError("--include and --exclude cannot both be given; give one of them")
    if (include or exclude) and (options["num_nodes"] or options["num_accelerators"]):
        raise ConfigError(
            "a filter already selects hosts and slots; drop --num_nodes and --num_accelerators (--num_gpus)"
        )
    if include:
        check_filter(include, "--include", slots)
    if exclude:
        check_filter(exclude, "--exclude", slots)
    if options["master_addr"]:
        check_host(str(options["master_addr"]), "--master_addr")
    _check_nodes(options, len(slots))
    if hostfile and not options["no_ssh"]:
        _check_remote(training)


def _check_nodes(options: dict[str, object], hosts: int) -> None:
    if not options["no_ssh"]:
        if options["node_rank"] is not None:
            raise ConfigError("--node_rank counts only with --no_ssh; add it, or drop --node_rank")
        return
    if not options["hostfile"]:
        raise ConfigError("--no_ssh needs a --hostfile that names all hosts, the same on each of them")
    node = options["node_rank"]
    if not isinstance(node, int) or node >= hosts:
        raise ConfigError(f"--no_ssh needs --node_rank, 0 to {hosts - 1}: which host of the hostfile this one is")
    if not options["master_addr"]:
        raise ConfigError("--no_ssh needs --master_addr, the address of the first host of the hostfile")


def _check_remote(training: tuple[str, ...]) -> None:
    """Check the environment that DeepSpeed exports to all machines, and the command line that remote shells parse."""
    named = os.environ.get("DS_ENV_FILE")
    if named is None and _ENVIRONMENT_FILE.is_file():
        raise ConfigError(
            f"{_ENVIRONMENT_FILE.resolve()} would be exported on all machines unnoticed; set "
            f"DS_ENV_FILE={_ENVIRONMENT_FILE} if that is wanted, or move it away"
        )
    name = named or _ENVIRONMENT_FILE.name
    for path in {Path.home() / name, Path(name)}:  # where DeepSpeed looks for it
        if path.is_file():
            check_environment_file(path)
    if named and not any((folder / named).is_file() for folder in (Path.home(), Path())):
        raise ConfigError(f"DS_ENV_FILE={named} is neither here nor in the home folder; DeepSpeed would ignore it")
    check_exported_environment(os.environ)
    check_arguments(training)


def _as_arguments(options: dict[str, object]) -> list[str]:
    arguments = []
    for name, value in options.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is not None and value is not False and value != "":  # 0 is a valid node rank
            arguments.append(f"--{name}={value}")
    return arguments
