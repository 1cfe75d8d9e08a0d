"""How the C library treats the memory of tensors on the CPU."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""
LARGEST_INT = 2**31 - 1
GLIBCS_OWN = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TOP_PAD_",
)
"""Environment variables by which users configure malloc themselves."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones.

    glibc returns large blocks to the kernel when they are freed, so the tensors of the next step cause a page fault
    for every 4 KiB, a fifth of the time of an MoE layer (docs/experiments.md). In exchange, the process holds its
    peak memory until it ends. Nothing is changed if the user has set one of GLIBCS_OWN.

    Returns:
        Whether it took effect; it does not with another C library.
    """
    chosen = any(os.environ.get(name) for name in GLIBCS_OWN)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, LARGEST_INT) == 1 for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
