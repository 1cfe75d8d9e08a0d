"""Freed memory stays with the process, so that the next tensors reuse its pages."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from storyteller_kernels.cpu_memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else False)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def page_faults(how: str, **environment: str) -> tuple[bool, int]:
    """Return whether it took effect, and the page faults of ten tensors of 64 MiB after ten others."""
    command = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    took_effect, faults = done.stdout.split()
    return took_effect == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the two thresholds")
def test_memory_is_kept():
    took_effect, faults = page_faults("keep")
    assert took_effect
    assert faults < 100
    # Negative control: without it, each tensor needs new pages.
    assert page_faults("leave")[1] > 1000


def test_who_sets_the_c_librarys_own_variables_keeps_them():
    assert not page_faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]
    assert not page_faults("keep", GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0]
