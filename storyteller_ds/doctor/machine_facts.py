"""What there is to find out about this machine; tests put in another."""

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
"""[FLOP/s]"""


@dataclass(frozen=True)
class MachineFacts:
    """Of the machine that this process runs on."""

    def free_bytes(self, folder: Path) -> int:
        """Free on the disk that a folder is on, or will be."""
        return shutil.disk_usage(existing(folder)).free

    def free_files(self, folder: Path) -> int | None:
        """Inodes that are free there; None: the file system has no such limit."""
        found = os.statvfs(existing(folder))
        return found.f_favail if found.f_files else None

    def compute_capability(self, device: torch.device) -> tuple[int, int] | None:
        """Of an NVIDIA card; None: it is none."""
        if device.type != "cuda" or torch.version.hip is not None:
            return None
        return torch.cuda.get_device_capability(device)

    def formats(self, device: torch.device) -> list[torch.dtype]:
        """Those that it has arithmetic for."""
        return measured_formats(device)

    def device_bytes(self, device: torch.device) -> int | None:
        """Memory of a device; None: not known."""
        if device.type == "cuda":
            return int(torch.cuda.get_device_properties(device).total_memory)
        return int(psutil.virtual_memory().total) if device.type == "cpu" else None

    def product_rate(self, device: torch.device) -> float | None:
        """Matrix products [FLOP/s], measured, or for a CPU about the most that its cores can reach; None: not known."""
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
    """What is there in place of a folder, or of one above it; None: nothing."""
    paths = (folder.absolute(), *folder.absolute().parents)
    return next((path for path in paths if os.path.lexists(path) and not path.is_dir()), None)


def existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
