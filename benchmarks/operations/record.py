"""Where, when and with what a measurement was made."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from storyteller_kernels.dispatch import choice_for, instruction_set

from storyteller_ds.durable import write_output

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {"triton": "triton", "deepspeed": "deepspeed", "transformers": "transformers", "liger": "liger-kernel"}
"""Peers that have a version: name in the record -> name on the package index."""
FORMAT = 1


def describe(suite: str, commit: str | None) -> dict[str, Any]:
    """Everything in a record except its results.

    Args:
        suite: cpu or gpu.
        commit: commit of the code, if git cannot tell it.
    """
    chosen = choice_for(torch.device("cuda" if suite == "gpu" else "cpu"))
    return {
        "format": FORMAT,
        "suite": suite,
        "device": device_name(suite),
        "instruction_set": _instruction_set() if suite == "cpu" else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit or _git("rev-parse", "--short=10", "HEAD") or "unknown",
        # Results are written into the checkout but do not change what is measured.
        "dirty": bool(
            _git("status", "--porcelain", "--", ".", ":(exclude)*.md", ":(exclude)benchmarks/operations/results")
        ),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernels": {"backend": chosen.name, "reason": chosen.reason},
    }


def _instruction_set() -> str:
    """The instruction set that torch uses; it may be limited to imitate an older processor."""
    imitated = ", imitated" if os.environ.get("ATEN_CPU_CAPABILITY") else ""
    return instruction_set() + imitated


def device_name(suite: str) -> str:
    """The GPU's or the CPU's name."""
    if suite == "gpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        if model:
            return model[1].strip()
    return platform.processor() or platform.machine()


def machine_name(record: Mapping[str, Any]) -> str:
    """The machine of a record: the device, and a CPU's instruction set, which is not part of its name."""
    return ", ".join(filter(None, [record["device"], record["instruction_set"]]))


def versions() -> dict[str, str | None]:
    """Versions of torch and of the peers; None if a package is not installed."""
    found: dict[str, str | None] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    for name, package in PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def file_for(out: Path, machine: Mapping[str, Any]) -> Path:
    """Where the record goes.

    Args:
        out: a .json file, or a folder; in a folder the record is <machine>_<commit>.json, and a second run of the same
            commit gets its own file.
        machine: the result of `describe`.
    """
    if out.is_dir() or out.suffix != ".json":
        return _free_name(out, f"{slug(machine_name(machine))}_{machine['commit']}")
    return out


def write(record: Mapping[str, Any], path: Path) -> None:
    """Write or replace the JSON file that --out names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, "--out", json.dumps(record, indent=1) + "\n")


def slug(device: str) -> str:
    """A device's name as part of a file name: "NVIDIA H200" to "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _free_name(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_run{number}.json"
    return path


def _git(*arguments: str) -> str:
    """The output of a git command in this checkout; empty if it fails or git is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
