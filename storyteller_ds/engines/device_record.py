"""The measured rates of this machine's device, kept in the cache folder (`storyteller bench device`).

A JSON object with one entry per device, number of threads and torch version, since rates depend on all of them.
"""

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from storyteller_kernels.dispatch import instruction_set

from storyteller_ds.data.cache import cache_folder
from storyteller_ds.durable import write_atomically
from storyteller_ds.engines.collective_rates import collective_rates
from storyteller_ds.engines.device_rates import copy_rate, launch_time, product_rate
from storyteller_ds.engines.precision import BF16_SINCE, DTYPE_NAMES
from storyteller_ds.errors import StorytellerError
from storyteller_ds.untrusted import read_json

FILE = "device_rates.json"


def device_key(device: torch.device) -> str:
    """The key of an entry: what its rates are valid for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {instruction_set()}"
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} thread(s)"
    return f"{name}, {platform.machine()}{threads}, torch {torch.__version__}"


def measured_formats(device: torch.device) -> list[torch.dtype]:
    """fp32, and the half formats for which the device has arithmetic; others are emulated, and slower."""
    if device.type == "cuda":
        has_bf16 = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= BF16_SINCE
        return [torch.float32, torch.float16, *[torch.bfloat16] * has_bf16]
    if device.type == "mps":
        return [torch.float32, torch.float16]
    has_bf16, has_fp16 = torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_fp16_supported()
    return [torch.float32, *[torch.float16] * has_fp16, *[torch.bfloat16] * has_bf16]


def measure_device(device: torch.device, log: Callable[[str], None]) -> dict[str, Any]:
    """Measure an entry for this device; takes seconds, during which the machine should do nothing else."""
    products = {}
    for dtype in measured_formats(device):
        log(f"matrix products, {DTYPE_NAMES[dtype]}")
        products[DTYPE_NAMES[dtype]] = product_rate(device, dtype)
    log("copies and launches")
    copies, launch = copy_rate(device), launch_time(device)
    log("messages between ranks of this machine")
    return {
        "products_flop_per_s": products,
        "copy_byte_per_s": copies,
        "launch_s": launch,
        "messages_byte_per_s": collective_rates(device),
    }


def read_records(file: Path | None = None) -> dict[str, Any]:
    """All entries; empty if the file is missing or not one of ours, since it can be made again."""
    try:
        found = read_json(file or cache_folder() / FILE)
    except (OSError, StorytellerError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(device: torch.device, entry: Mapping[str, Any], file: Path | None = None) -> Path:
    """Write the entry of this device, keeping those of others.

    Raises:
        UserError: the cache folder cannot be determined.
        OSError: the file cannot be written.
    """
    target = file or cache_folder() / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps({**read_records(target), device_key(device): entry}, indent=2) + "\n")
    return target


def recorded(device: torch.device) -> dict[str, Any] | None:
    """The entry of this device, if it has been measured."""
    entry = read_records().get(device_key(device))
    return entry if isinstance(entry, dict) and "products_flop_per_s" in entry else None


def known_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The recorded rate of matrix products, or one measured now if there is none [FLOP/s]."""
    rates = (recorded(device) or {}).get("products_flop_per_s", {})
    rate = rates.get(DTYPE_NAMES[dtype])
    return rate if isinstance(rate, float) and rate > 0 else product_rate(device, dtype)
