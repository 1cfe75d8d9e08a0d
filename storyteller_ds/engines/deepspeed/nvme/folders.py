"""The folders that DeepSpeed swaps weights and optimizer state to.

DeepSpeed writes under a fixed name below nvme_path, so two runs with the same path would overwrite each other, and a
failed write aborts the process from C++ without a message. So the path is checked before the start, every run gets its
own folder below it, and what killed runs left there is removed.
"""

import contextlib
import fcntl
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from storyteller_ds.distributed.world import World
from storyteller_ds.engines.deepspeed.nvme.settings import nvme_sections
from storyteller_ds.errors import ConfigError

_PREFIX = "storyteller-swap-"
_OPTIMIZER_BYTES = 16
"""Per parameter: weight, gradient and AdamW's two moments, all fp32."""


def check_nvme(ds_config: Mapping[str, Any], parameters: int, weight_bytes: int, world: World) -> None:
    """Refuse an nvme_path that cannot work, on every machine and before any rank waits for another.

    Args:
        ds_config: the DeepSpeed JSON.
        parameters: number of parameters of the whole model.
        weight_bytes: bytes of one weight as the model computes with it: 4 (fp32) or 2.
        world: how many ranks share the parameters, and how many of them are on this machine.

    Raises:
        ConfigError: NVMe offload does not work with a setting, or a path does not allow writes that bypass the page
            cache or has too little space.
    """
    here = -(-parameters * world.local_size // world.size)
    needed: dict[Path, int] = {}
    for section, settings in nvme_sections(ds_config).items():
        for name in ("pipeline_read", "pipeline_write"):
            if settings.get(name):
                raise ConfigError(
                    f"zero_optimization.{section}.{name}: with it the optimizer state cannot be read exactly between "
                    "two steps, which a checkpoint needs; remove it"
                )
        path = Path(settings["nvme_path"]).resolve()
        _check_folder(path, f"zero_optimization.{section}.nvme_path")
        needed[path] = needed.get(path, 0) + here * (weight_bytes if section == "offload_param" else _OPTIMIZER_BYTES)
    for path, size in needed.items():
        with _locked(path, fcntl.LOCK_EX):
            _check_room(path, size)


@contextlib.contextmanager
def own_swap_folders(ds_config: Mapping[str, Any], world: World) -> Iterator[dict[str, Any]]:
    """A folder below each nvme_path that only this run uses, removed at the end of the block; called by all ranks.

    Args:
        ds_config: the DeepSpeed JSON, which passed check_nvme.
        world: this process among the ranks; connected.

    Yields:
        The JSON with these folders in place of nvme_path.
    """
    name = world.on_main(lambda: _PREFIX + secrets.token_hex(8))
    zero = dict(ds_config["zero_optimization"])
    for section, settings in nvme_sections(ds_config).items():
        zero[section] = {**settings, "nvme_path": str(Path(settings["nvme_path"]) / name)}
    folders = {Path(zero[section]["nvme_path"]) for section in nvme_sections(ds_config)}
    with contextlib.ExitStack() as taken:
        world.on_each_machine(lambda: [taken.enter_context(_taken(folder)) for folder in folders] and None)
        yield {**ds_config, "zero_optimization": zero}


@contextlib.contextmanager
def _taken(folder: Path) -> Iterator[None]:
    """Create a folder and keep it locked, and so known to be in use, until the block or this process ends."""
    with contextlib.ExitStack() as in_use:
        with _locked(folder.parent, fcntl.LOCK_EX):
            # It may exist already: on a shared disk another machine of this run may have come first.
            folder.mkdir(exist_ok=True)
            in_use.enter_context(_locked(folder, fcntl.LOCK_SH))
        in_use.callback(shutil.rmtree, folder, ignore_errors=True)
        yield


def _check_folder(path: Path, where: str) -> None:
    probe = path / f".storyteller-probe-{os.getpid()}"
    try:
        # As DeepSpeed writes: bypassing the page cache, which not every file system supports.
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:
                os.write(descriptor, page)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{where}: {path} cannot be written with direct I/O ({error.strerror}); name a folder on a local disk "
            "that this user may write to and that has room"
        ) from None


def _check_room(path: Path, needed: int) -> None:
    _clear_abandoned(path)
    free = shutil.disk_usage(path).free
    if free < needed:
        raise ConfigError(
            f"nvme_path {path} has {_size(free)} free, but this run swaps {_size(needed)} to it; "
            "free some, or name a folder on a larger disk"
        )


def _clear_abandoned(path: Path) -> None:
    """Remove the folders that killed runs have left."""
    for folder in path.glob(f"{_PREFIX}*"):
        # If locked, it belongs to a living run; without permission, to another user, who has to remove it.
        with (
            contextlib.suppress(BlockingIOError, PermissionError, FileNotFoundError),
            _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB),
        ):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold a lock on a folder (flock(2)) against other users of this function; also freed when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
