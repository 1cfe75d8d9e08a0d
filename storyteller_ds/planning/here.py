"""This machine as a device to plan for, with measured rates instead of published ones."""

from collections.abc import Callable

import psutil
import torch

from storyteller_ds.distributed.world import pick_device
from storyteller_ds.engines.device_record import measure_device, measured_formats, recorded, write_record
from storyteller_ds.engines.precision import DTYPE_NAMES
from storyteller_ds.planning.devices import ETHERNET, GB, HERE, Device

_OF_MPS = 0.75
"""Fraction of a Mac's memory that Metal recommends as the maximum for its GPU."""
_PCIE_4 = 32 * GB
"""Assumed bandwidth between GPUs if the machine has only one, so that it cannot be measured [byte/s]."""


def this_machine(name: str, log: Callable[[str], None]) -> Device:
    """This machine's device, from the record of `storyteller bench device`; measured now if there is no record.

    Args:
        name: HERE for the one that training would use, or cpu, cuda or mps.
        log: gets a line if the device has to be measured.

    Raises:
        ConfigError: this machine has no such device.
    """
    device = pick_device("auto" if name == HERE else name, None, "--device")
    entry = recorded(device)
    if entry is None:
        log("this machine has not been measured yet (storyteller bench device); that takes some seconds")
        entry = measure_device(device, log)
        write_record(device, entry)
    link = min(entry["messages_byte_per_s"].values(), default=_PCIE_4)
    is_cuda = device.type == "cuda"
    return Device(
        torch.cuda.get_device_name(device) if is_cuda else device.type,
        device.type,
        _memory(device),
        entry["products_flop_per_s"],
        entry["copy_byte_per_s"],
        link,
        ETHERNET if is_cuda else link,
        torch.cuda.device_count() if is_cuda else 1,
        DTYPE_NAMES[measured_formats(device)[-1]] if is_cuda else "fp32",
        "measured on this machine by storyteller bench device",
        is_measured=True,
    )


def _memory(device: torch.device) -> int:
    """Memory of the device (bytes)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total * (_OF_MPS if device.type == "mps" else 1))
