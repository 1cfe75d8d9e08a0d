"""What can be found out about this machine; tests substitute another."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from storyteller_ds.cores import usable_cores
from storyteller_ds.engines.device_record import measured_formats, recorded

_OF_A_CORE = 1e11
"""Upper estimate for one CPU core [FLOP/s]."""


@dataclass(frozen=True)
class MachineFacts:
    """Facts about the machine that this process runs on."""

    def free_bytes(self, folder: Path) -> int:
        """Free bytes on the disk that a folder is, or will be, on."""
        return shutil.disk_usage(existing(folder)).free

    def free_files(self, folder: Path) -> int | None:
        """Free inodes there; None: the file system has no such limit."""
        found = os.statvfs(existing(folder))
        return found.f_favail if found.f_files else None

    def compute_capability(self, device: torch.device) -> tuple[int, int] | None:
        """Of an NVIDIA GPU; None for any other device."""
        if device.type != "cuda" or torch.version.hip is not None:
            return None
        return torch.cuda.get_device_capability(device)

    def formats(self, device: torch.device) -> list[torch.dtype]:
        """The number formats that the device has arithmetic for."""
        return measured_formats(device)

    def device_bytes(self, device: torch.device) -> int | None:
        """Memory of a device; None: unknown."""
        if device.type == "cuda":
            return int(torch.cuda.get_device_properties(device).total_memory)
        return int(psutil.virtual_memory().total) if device.type == "cpu" else None

    def product_rate(self, device: torch.device) -> float | None:
        """Measured rate of matrix products [FLOP/s], or for a CPU about the most its cores can reach; None: unknown."""
        measured: dict[str, float] = (recorded(device) or {}).get("products_flop_per_s", {})
        if not measured and device.type == "cpu":
            return _OF_A_CORE * usable_cores()
        return max(measured.values(), default=None)

    def interfaces(self) -> list[str]:
        """Names of the network interfaces."""
        return sorted(psutil.net_if_addrs())

    def now(self) -> float:
        """The clock (seconds since 1970)."""
        return time.time()


def file_in_the_way(folder: Path) -> Path | None:
    """A file where the folder or one of its parents should be; None if there is none."""
    paths = (folder.absolute(), *folder.absolute().parents)
    return next((path for path in paths if os.path.lexists(path) and not path.is_dir()), None)


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
