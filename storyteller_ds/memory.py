"""Out of memory as one line that names what to lower, however Python, torch or a driver reports it."""

import contextlib
import errno
import re
from collections.abc import Iterator

from storyteller_ds.errors import OutOfMemory

_WORDS = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "Storage size calculation overflowed",
)
"""CUDA, MPS and NCCL; torch's CPU allocator on Linux, and on Windows; C++; cuBLAS; torch, beyond 64 bits."""
_LIBRARY_NOT_MAPPED = "failed to map segment from shared object"
"""glibc, when Python imports a library. If a reason follows, such as a noexec mount, it is not memory."""
_AMOUNT = re.compile(r"(?:tried|unable) to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


@contextlib.contextmanager
def memory_hint(hint: str, where: str = "") -> Iterator[None]:
    """Raise OutOfMemory, ending with this hint, for any error in the block which means that memory has run out.

    Args:
        hint: what to lower, in the order that helps.
        where: which rank, if there are several.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        amount = _AMOUNT.search(str(error))
        tried = f" (tried to allocate {amount[1]})" if amount else ""
        raise OutOfMemory(f"out of memory{where}{tried}; {hint}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error of Python, torch or a driver means that memory has run out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError) and str(error).endswith(_LIBRARY_NOT_MAPPED):
        return True
    return isinstance(error, MemoryError) or any(words in str(error) for words in _WORDS)
