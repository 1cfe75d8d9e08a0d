"""Out-of-memory errors are recognized in all their forms, and no other error is taken for one."""

import errno

import numpy as np
import pytest
import torch

from storyteller_ds.errors import OutOfMemory, UserError
from storyteller_ds.memory import is_out_of_memory, memory_hint


def raised_by_torch(*shape: int) -> BaseException:
    with pytest.raises(RuntimeError) as info:
        torch.empty(shape)
    return info.value


def raised_by_numpy() -> BaseException:
    with pytest.raises(MemoryError) as info:
        np.empty(1 << 50)
    return info.value


CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 5.00 GiB is "
    "free. Including non-PyTorch memory, this process has 74.00 GiB memory in use."
)
MPS = "MPS backend out of memory (MPS allocated: 17.33 GB, max allowed: 18.13 GB). Tried to allocate 500.00 MB on pool."


@pytest.mark.parametrize(
    ("error", "tried"),
    [
        (raised_by_torch(1 << 50), " (tried to allocate 4503599627370496 bytes)"),
        (raised_by_numpy(), " (tried to allocate 8.00 PiB)"),
        (torch.OutOfMemoryError(CUDA), " (tried to allocate 20.00 GiB)"),
        (RuntimeError(MPS), " (tried to allocate 500.00 MB)"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), ""),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
        (RuntimeError("std::bad_alloc"), ""),
        (MemoryError(), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (ImportError("libc10.so: failed to map segment from shared object"), ""),
        (ImportError("libc10.so: cannot apply additional memory protection: Cannot allocate memory"), ""),
        (raised_by_torch(1 << 40, 1 << 40), ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_is_one_line_with_the_hint(error, tried):
    with pytest.raises(OutOfMemory) as info, memory_hint("lower this", " on rank 3"):
        raise error
    assert str(info.value) == f"out of memory on rank 3{tried}; lower this"
    assert info.value.exit_code == 2
    assert info.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("out of memory"),
        ModuleNotFoundError("No module named 'wandb'"),
        ImportError("libc10.so: failed to map segment from shared object: Operation not permitted"),  # noexec
        UserError("the training text is too short"),
    ],
)
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as info, memory_hint("lower this"):
        raise error
    assert info.value is error


def test_the_inner_hint_is_the_one_that_is_given():
    with pytest.raises(OutOfMemory, match="; inner"), memory_hint("outer"), memory_hint("inner"):
        raise MemoryError
    assert is_out_of_memory(MemoryError())
