"""How the C library treats the memory of tensors on the CPU."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones.

    glibc gives large blocks back to the kernel when they are freed, and the tensors of the next step find none of
    their pages there: a page fault for each 4 KiB, a fifth of the time of a mixture layer (docs/experiments.md).
    The process then holds what it needed at its peak until it ends. Who has set glibc's own variables
    (MALLOC_..._, GLIBC_TUNABLES) keeps them.

    Returns:
        Whether it took effect: not with another C library.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, LARGEST_INT) == 1 for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
