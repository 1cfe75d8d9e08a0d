"""What is installed, which kernels are chosen, and what the device can do."""

import importlib.metadata
import subprocess
from typing import Any

import torch
from storyteller_kernels.dispatch import choice_for

from benchmarks.gpu_check.part import Options, run_part
from storyteller_ds.engines.device_rates import copy_rate, launch_time, product_rate

PACKAGES = ("torch", "triton", "deepspeed", "transformers", "liger-kernel", "pydantic", "tokenizers", "safetensors")


def measure(options: Options) -> dict[str, Any]:
    """Versions and rates."""
    device = options.device
    formats = [torch.float32, torch.bfloat16]
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "driver": _driver(),
        "kernels": choice_for(device)._asdict(),
        "product_tflops": {str(dtype): product_rate(device, dtype) / 1e12 for dtype in formats},
        "copy_gb_per_s": copy_rate(device) / 1e9,
        "launch_us": launch_time(device) * 1e6,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    run_part("environment", measure)
