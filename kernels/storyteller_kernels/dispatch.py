"""Which implementation of the operations this process uses, chosen once.

`STORYTELLER_KERNELS` is
- `auto` (the default): `triton` if there is an NVIDIA GPU that is new enough and on which Triton works,
  otherwise `reference`; for tensors on the CPU `cpu`, which is also plain torch, but arranged for speed;
- `triton`: Triton or an error. With `TRITON_INTERPRET=1` its interpreter runs the kernels on CPU tensors,
  slowly, which is how they are tested without a GPU;
- `reference`: the plain definitions, on every device.

If Triton does not work on a suitable GPU, that is always reported: `auto` warns with the reason, `triton` raises.
A kernel that fails to compile later raises Triton's own error.

The choice is made once per process; each call asks `runs_on_triton` whether its tensors suit. They suit if all are
bf16, fp16 or fp32 and on one device, which must be a CUDA device (the CPU in the interpreter); an operation may add a
condition of its own, such as a largest width, stated in its `__init__.py`. A call that does not suit asks
`runs_on_cpu`, if the operation has an implementation for the CPU, and otherwise uses the reference, as MPS always does.
"""

import functools
import os
import platform
import subprocess
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from storyteller_kernels.cpu_products import onednn_is_faster

F = TypeVar("F", bound=Callable[..., Any])

NEEDED_CAPABILITY = (8, 0)
"""The first with bf16 on the matrix units (sm_80, Ampere)."""
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
LAUNCH_OPTIONS = {"enable_fp_fusion": True}
"""For every launch: a * b + c with one rounding. Triton's default changes in 3.10, and 3.9 warns about that."""


class Backend(NamedTuple):
    """The chosen implementation and why it was chosen, for one line in the log."""

    name: str
    reason: str


ASKED_FOR = Backend("reference", "STORYTELLER_KERNELS=reference")


@functools.cache
def backend() -> Backend:
    """The implementation in use, read from the environment at the first call.

    Raises:
        ValueError: STORYTELLER_KERNELS has an unknown value.
        RuntimeError: STORYTELLER_KERNELS=triton, and Triton cannot run here.
    """
    wanted = os.environ.get("STORYTELLER_KERNELS", "auto")
    if wanted not in ("auto", "triton", "reference"):
        raise ValueError(f"STORYTELLER_KERNELS={wanted} is not known; use auto, triton or reference")
    if wanted == "reference":
        return ASKED_FOR
    if interpreting():
        if wanted == "triton":
            return Backend("triton", "STORYTELLER_KERNELS=triton, in the interpreter (TRITON_INTERPRET=1)")
        return Backend("reference", "TRITON_INTERPRET=1, which is for tests")
    obstacle = _device_obstacle()
    failure = _triton_failure() if obstacle is None else None
    if wanted == "triton" and (obstacle or failure):
        raise RuntimeError(f"STORYTELLER_KERNELS=triton is not possible: {obstacle or failure}; use auto or reference")
    if obstacle is not None:
        return Backend("reference", obstacle)
    if failure is not None:
        warnings.warn(f"{failure}; the slower plain torch operations are used", RuntimeWarning, stacklevel=2)
        return Backend("reference", failure)
    return Backend("triton", f"{wanted} on {torch.cuda.get_device_name()}")


def runs_on_triton(*tensors: Tensor) -> bool:
    """Whether a call with these floating-point tensors goes to Triton; the rule is at the top of this file."""
    device = tensors[0].device
    if device.type != _triton_device():
        return False
    return _chosen() == "triton" and all(t.device == device and t.dtype in FLOATS for t in tensors)


def runs_on_cpu(*tensors: Tensor) -> bool:
    """Whether a call with these floating-point tensors uses the CPU implementation: all fp32, or all fp64.

    bf16 and autocast do not: there the plain definitions are already products by oneDNN.
    """
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and all(t.device == first.device and t.dtype == first.dtype for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and _chosen() != ASKED_FOR.reason
    )


def constant(function: F) -> F:
    """Does what torch.compiler.assume_constant_result does: a compiler calls the function once, without tracing it.

    That decorator loads the compiler, which takes seconds, when it is applied.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def _chosen() -> str:
    """The name of the backend, or the reason if the reference was asked for; a compiler need not trace it."""
    return ASKED_FOR.reason if backend() is ASKED_FOR else backend().name


@constant
def _triton_device() -> str:
    """The device type of the tensors that Triton takes."""
    return "cpu" if interpreting() else "cuda"


def choice_for(device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
    """What a call in this dtype on this device uses, unless its operation has a condition of its own.

    For the log.
    """
    if device.type == "cuda" or backend() is ASKED_FOR:
        return backend()
    if device.type != "cpu":
        return Backend("reference", f"there are no kernels for {device.type}")
    if dtype not in (torch.float32, torch.float64):
        return Backend("reference", f"there are no kernels for {str(dtype).removeprefix('torch.')} on the CPU")
    return Backend("cpu", f"fp32 products by {'oneDNN' if onednn_is_faster() else 'BLAS'}")


def instruction_set() -> str:
    """The widest vector instructions that torch uses on this CPU, for records and tables whose rates depend on them."""
    names = {"AVX512": "AVX-512", "DEFAULT": f"{platform.machine()} without AVX2"}
    capability = torch.backends.cpu.get_cpu_capability()
    return names.get(capability, capability)


def interpreting() -> bool:
    """Whether Triton's interpreter stands in for a GPU; TRITON_INTERPRET must be set before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the current one in this context, since Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@functools.cache
def processor_count(device: torch.device) -> int:
    """Streaming multiprocessors of the device, for the size of a grid; 4 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _device_obstacle() -> str | None:
    """Why the device rules out Triton, or None."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < NEEDED_CAPABILITY:
        has, needs = (".".join(map(str, version)) for version in (capability, NEEDED_CAPABILITY))
        return f"{torch.cuda.get_device_name()} has compute capability {has}, the kernels need {needs}"
    return None


def _triton_failure() -> str | None:
    """How Triton fails on a device that suits it, or None; compiles and runs the smallest kernel."""
    try:
        from triton.errors import TritonError
    except (ImportError, OSError) as error:
        return f"Triton cannot be imported ({error}); install it with: pip install 'triton>=3.6'"
    try:
        _run_smallest_kernel()
    # Failures to compile, to launch (no C compiler, no Python headers, a driver that refuses), or to start ptxas.
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"Triton cannot run a kernel here ({type(error).__name__}: {error})"
    return None


def _run_smallest_kernel() -> None:
    from storyteller_kernels.permute.kernel import gather

    gather(torch.ones(1, 1, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")).item()
