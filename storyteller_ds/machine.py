"""The machine on which something was measured."""

import datetime
import os
import platform
import resource
import sys
from importlib.metadata import version
from importlib.util import find_spec

import torch
from storyteller_kernels.dispatch import instruction_set

from storyteller_ds.version import VERSION


def machine() -> dict[str, str]:
    """What measurements depend on."""
    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "storyteller_ds": VERSION,
        "processor": f"{os.cpu_count()} x {platform.machine()}, {instruction_set()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed") if find_spec("deepspeed") else "not installed",
    }
    if torch.cuda.is_available():
        facts["cuda"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return facts


def peak_resident_bytes() -> int:
    """Peak memory of this process so far, including what it has imported and mapped (bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
