"""Versions of installed libraries, compared with what this package requires."""

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from storyteller_ds.doctor.finding import Check, Finding, error, warning
from storyteller_ds.doctor.subject import Subject

_PACKAGE = "storyteller_ds"
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(==|>=)\s*([\d.]+)[^;]*(?:;(.*))?")
_OLDEST_PYTHON = (3, 11)
_NVIDIA = Path("/proc/driver/nvidia/version")


def requirements() -> list[str]:
    """What the package requires; empty if the package is not installed."""
    try:
        return importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def installed(name: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(subject: Subject) -> Iterator[Finding]:
    """The libraries that every run needs, and DeepSpeed, where one version is known to work."""
    if sys.version_info < _OLDEST_PYTHON:
        yield error(f"Python {platform.python_version()} is too old", "install Python 3.11 or newer")
    for requirement in requirements():
        match = _REQUIREMENT.match(requirement)
        if match is None:
            continue
        name, operator, wanted, condition = match.groups()
        is_extra, version = "extra" in (condition or ""), installed(name)
        if is_extra and not (name == "deepspeed" and version is not None):
            continue
        if version is None:
            yield error(f"{name} is not installed", f"pip install '{name}{operator}{wanted}'")
        elif operator == ">=" and _numbers(version) < _numbers(wanted):
            yield error(f"{name} {version} is installed, older than {wanted}", f"pip install '{name}>={wanted}'")
        elif operator == "==" and _numbers(version) != _numbers(wanted):
            say = error if subject.loaded.deepspeed is not None else warning
            yield say(
                f"{name} {version} is installed, and this package knows {wanted} inside out",
                f"pip install '{name}=={wanted}'",
            )


def cuda(subject: Subject) -> Iterator[Finding]:
    """A GPU that torch does not use."""
    has_driver = _NVIDIA.exists()
    if torch.version.cuda is None and torch.version.hip is None:
        if has_driver:
            yield warning(
                f"there is an NVIDIA driver, and torch {torch.__version__} is built for CPUs",
                "pip install torch --index-url https://download.pytorch.org/whl/cu128",
            )
    elif not torch.cuda.is_available() and torch.version.cuda is not None:
        if has_driver:
            yield warning(
                f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, and cannot use the driver here, "
                "which is probably older",
                "update the driver (nvidia-smi shows it), or install a torch for its CUDA",
            )
        elif subject.run.parallel.device == "cuda":
            yield error("parallel.device=cuda, and there is no NVIDIA driver", "install one, or parallel.device=cpu")


def triton(subject: Subject) -> Iterator[Finding]:
    """Without Triton, a GPU uses the plain kernels."""
    if subject.device.type == "cuda" and installed("triton") is None:
        yield warning("triton is not installed, so that the fast kernels are missing", "pip install 'triton>=3.6'")


def _numbers(version: str) -> tuple[int, ...]:
    """1.2.3+cpu as (1, 2, 3), without trailing zeros, so that 2.0 equals 2."""
    found = tuple(int(each) for each in re.findall(r"\d+", version.split("+")[0])[:3])
    while found and found[-1] == 0:
        found = found[:-1]
    return found


def nccl(subject: Subject) -> Iterator[Finding]:
    """The GPUs of several ranks exchange tensors through NCCL (on AMD, torch's NCCL is RCCL)."""
    if subject.device.type == "cuda" and subject.plan.world_size > 1 and not torch.distributed.is_nccl_available():
        yield error(
            f"torch {torch.__version__} is built without NCCL, with which {subject.plan.world_size} cards communicate",
            "install torch for Linux from pytorch.org, or train on one card without --ds_config",
        )


CHECKS: tuple[Check, ...] = (versions, cuda, triton, nccl)
