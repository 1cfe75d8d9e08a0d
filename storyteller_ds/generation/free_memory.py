"""How much memory a device has free."""

from pathlib import Path

import psutil
import torch

_MEMBERSHIP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_FILES, _UNLIMITED = ("max", "current", "stat"), "max"


def free_bytes(device: torch.device) -> int:
    """Free memory of a device (bytes); on a CPU, within the limits of a container or a batch job."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """Memory left by each limit on this process (bytes): those of its cgroup (Linux, version 2) and of its ancestors.

    Inactive file pages count as free: the kernel drops them before it kills a process.
    """
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    group = next((_GROUPS / line.removeprefix("0::/") for line in lines if line.startswith("0::/")), _GROUPS)
    left = []
    for folder in (group, *group.parents):
        try:
            limit, used, stat = ((folder / f"memory.{name}").read_text(encoding="utf-8").strip() for name in _FILES)
        except OSError:  # the root group has none
            continue
        if limit != _UNLIMITED:
            kept = dict(line.split() for line in stat.splitlines())
            left.append(max(0, int(limit) - int(used) + int(kept["inactive_file"])))
    return left
