"""This machine as a device that can be planned for: its rates are measured, not published."""

from collections.abc import Callable

import psutil
import torch

from storyteller_ds.engines.device_record import measure_device, recorded, write_record
from storyteller_ds.planning.devices import HERE, Device


def this_machine(log: Callable[[str], None]) -> Device:
    """Its processors, by the record of `storyteller bench device`, which is measured now if there is none."""
    device = torch.device("cpu")
    entry = recorded(device)
    if entry is None:
        log("this machine has not been measured yet (storyteller bench device); that takes some seconds")
        entry = measure_device(device, log)
        write_record(device, entry)
    link = min(entry["messages_byte_per_s"].values())
    return Device(
        HERE,
        "cpu",
        psutil.virtual_memory().total,
        entry["products_flop_per_s"],
        entry["copy_byte_per_s"],
        link,
        link,
        1,
        "fp32",
        "measured on this machine by storyteller bench device",
    )
