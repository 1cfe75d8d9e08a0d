"""The folders that DeepSpeed swaps weights and optimizer state to (ZeRO-Infinity, Rajbhandari et al. 2021).

DeepSpeed writes under a fixed name below nvme_path, so two runs with one path would overwrite each other, and a
write that fails aborts the process from C++ with no word about why. So the path is looked at before the start,
every run gets a folder of its own below it, and what killed runs left there is removed.
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

import torch

from storyteller_ds.distributed.world import World
from storyteller_ds.engines.deepspeed.extensions import alone_in
from storyteller_ds.errors import ConfigError

OPTIMIZER_BYTES = 16
"""Per parameter: weight, gradient and AdamW's two moments, all fp32."""
_SECTIONS = ("offload_optimizer", "offload_param")
_PREFIX = "storyteller-swap-"
_PROMISE = "bytes"


def check_nvme(
    ds_config: Mapping[str, Any], parameters: int, weight_bytes: int, world: World, device: torch.device
) -> None:
    """Refuse an nvme_path that cannot work; before any rank waits for another, and on every machine.

    Args:
        ds_config: the DeepSpeed JSON.
        parameters: of the whole model.
        weight_bytes: of one weight as the model computes with it: 4 (fp32) or 2.
        world: how many ranks share the parameters, and how many of them are on this machine.
        device: of this rank.

    Raises:
        ConfigError: a setting with which NVMe offload does not work, or a path that is missing, no folder,
            cannot be written past the page cache, or has too little room.
    """
    zero = ds_config.get("zero_optimization", {})
    for section, settings in _nvme_sections(ds_config).items():
        where = f"zero_optimization.{section}"
        if zero.get("stage") != 3:
            raise ConfigError(f"{where}: only ZeRO-3 offloads to nvme; set zero_optimization.stage to 3, or device cpu")
        for name in ("pipeline_read", "pipeline_write"):
            if settings.get(name):
                raise ConfigError(
                    f"{where}.{name}: with it the optimizer state cannot be read exactly between two steps, which "
                    "a checkpoint needs; remove it"
                )
        if not isinstance(settings.get("nvme_path"), str):
            raise ConfigError(f"{where}: device is nvme, but nvme_path is missing; name a folder on a local disk")
        _check_folder(Path(settings["nvme_path"]), f"{where}.nvme_path")
    if ds_config.get("aio", {}).get("use_gds") and device.type != "cuda":
        raise ConfigError(f"aio.use_gds reads from NVMe into a CUDA card, but the device is {device.type}; remove it")
    for path, needed in _bytes_needed(ds_config, parameters, weight_bytes, world).items():
        with alone_in(path):
            _check_room(path, needed)


def with_nvme_settings(ds_config: Mapping[str, Any], largest_parameter: int) -> dict[str, Any]:
    """The JSON with what DeepSpeed 0.19.8 needs to swap weights to NVMe at all; unchanged if they stay in memory.

    Each weight that is gathered keeps one of buffer_count buffers, and a weight that is fetched ahead of its use
    keeps one even across the step: with reuse and prefetch on, training ends in an assertion as soon as the model
    has more weights than buffers. Buffers hold one weight each; the default of 1e8 elements locks 2 GB a rank.

    Args:
        ds_config: the DeepSpeed JSON.
        largest_parameter: elements of the largest single parameter.
    """
    result = dict(ds_config)
    if swaps_weights(ds_config):
        zero = dict(result["zero_optimization"])
        offload = dict(zero["offload_param"])
        offload["buffer_size"] = max(largest_parameter, _number(offload.get("buffer_size")))
        zero |= {"offload_param": offload, "stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0}
        result["zero_optimization"] = zero
    return result


def swaps_weights(ds_config: Mapping[str, Any]) -> bool:
    """Whether the weights themselves go to NVMe, and not only optimizer state."""
    return "offload_param" in _nvme_sections(ds_config)


@contextlib.contextmanager
def own_swap_folders(
    ds_config: Mapping[str, Any], parameters: int, weight_bytes: int, world: World
) -> Iterator[dict[str, Any]]:
    """A folder below each nvme_path that only this run uses, removed at the end of the block; called by all ranks.

    Args:
        ds_config: the DeepSpeed JSON, which passed check_nvme.
        parameters: of the whole model.
        weight_bytes: as for check_nvme.
        world: this process among the ranks; connected.

    Yields:
        The JSON with these folders in the place of nvme_path.

    Raises:
        ConfigError: other runs need the room.
    """
    needed = _bytes_needed(ds_config, parameters, weight_bytes, world)
    if not needed:
        yield dict(ds_config)
        return
    name = world.on_main(lambda: _PREFIX + secrets.token_hex(8))
    with contextlib.ExitStack() as taken:
        world.on_each_machine(
            lambda: [taken.enter_context(_taken(path, name, size)) for path, size in needed.items()] and None
        )
        zero = dict(ds_config["zero_optimization"])
        for section, settings in _nvme_sections(ds_config).items():
            zero[section] = {**settings, "nvme_path": str(Path(settings["nvme_path"]) / name)}
        yield {**ds_config, "zero_optimization": zero}


@contextlib.contextmanager
def _taken(path: Path, name: str, needed: int) -> Iterator[None]:
    """A folder that is known to be in use for as long as this process lives."""
    folder = path / name
    with alone_in(path):
        _check_room(path, needed)
        # It may be there: on a shared disk another machine of this run has come first.
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        (folder / _PROMISE).write_text(str(needed), encoding="utf-8")
    try:
        yield
    finally:
        with alone_in(path):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _check_folder(path: Path, where: str) -> None:
    if not path.exists():
        raise ConfigError(f"{where}: {path} does not exist; create it on a local disk, or name another")
    if not path.is_dir():
        raise ConfigError(f"{where}: {path} is not a folder; name one on a local disk")
    probe = path / f".storyteller-probe-{os.getpid()}"
    try:
        # As DeepSpeed writes: past the page cache, which not every file system can.
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
    promised = _clear_abandoned(path)
    free = shutil.disk_usage(path).free - promised
    if free < needed:
        others = f" ({_size(promised)} more are promised to other runs)" if promised else ""
        raise ConfigError(
            f"nvme_path {path} has {_size(max(0, free))} free{others}, but this run swaps {_size(needed)} to it; "
            "free some, or name a folder on a larger disk"
        )


def _clear_abandoned(path: Path) -> int:
    """Remove what runs that were killed left; the bytes that living runs have still to write."""
    promised = 0
    for folder in path.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except PermissionError:
            continue  # another user's, who alone can look after it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            promised += max(0, int((folder / _PROMISE).read_text(encoding="utf-8")) - _used(folder))
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
    return promised


def _used(folder: Path) -> int:
    used = 0
    for file in folder.rglob("*.swp"):
        with contextlib.suppress(FileNotFoundError):
            used += file.stat().st_size
    return used


def _bytes_needed(ds_config: Mapping[str, Any], parameters: int, weight_bytes: int, world: World) -> dict[Path, int]:
    """What the ranks of this machine write below each path."""
    here = -(-parameters * world.local_size // world.size)
    needed: dict[Path, int] = {}
    for section, settings in _nvme_sections(ds_config).items():
        path = Path(settings["nvme_path"]).resolve()
        needed[path] = needed.get(path, 0) + here * (OPTIMIZER_BYTES if section == _SECTIONS[0] else weight_bytes)
    return needed


def _nvme_sections(ds_config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    zero = ds_config.get("zero_optimization", {})
    return {name: zero[name] for name in _SECTIONS if (zero.get(name) or {}).get("device") == "nvme"}


def _number(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
