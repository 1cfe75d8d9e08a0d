"""Where the Triton kernels run in tests: on the GPU if there is one, else in Triton's interpreter on the CPU."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    # Triton reads the variable once, when it is imported: here, before any test can unset it.
    importlib.import_module("triton.language")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def _working_interpreter() -> None:
    """Give the interpreter the bf16 arithmetic of the hardware, which it lacks.

    It stores bf16 as uint16. It rounds fp32 to bf16 toward zero, where every GPU rounds to nearest even, and
    its dot multiplies the uint16 patterns as if they were numbers (triton 3.6 to 3.9).
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    if not isinstance(tl.sum, interpreter.InterpretedFunction):
        pytest.fail("triton was imported before TRITON_INTERPRET=1 was set; set it when starting pytest")
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_float(value: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            # Copied: interpreted values may be read-only views.
            return torch.from_numpy(np.array(value)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        return convert(value, source, target, rounding)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, *rest)

    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the operations on Triton during this test; yields the device for their tensors."""
    from storyteller_kernels.dispatch import backend

    if not HAS_TRITON:
        pytest.skip("needs triton: pip install 'triton>=3.6'")
    if INTERPRETED:
        request.getfixturevalue("_working_interpreter")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("STORYTELLER_KERNELS", "triton")
    backend.cache_clear()
    yield "cpu" if INTERPRETED else "cuda"
    backend.cache_clear()


@pytest.fixture
def gpu(triton_device: str) -> str:
    """Like triton_device, for a test marked `gpu`; skips it in the interpreter."""
    if triton_device != "cuda":
        pytest.skip("needs a CUDA device")
    return triton_device


@pytest.fixture(params=["reference", "triton"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test once on each implementation, with tensors created on the device of that one.

    Where an operation has a CPU path, its tests add that path with BLAS products ("cpu") and with oneDNN products
    of any size ("onednn").
    """
    from storyteller_kernels import cpu_products
    from storyteller_kernels.dispatch import backend

    if request.param == "triton":
        device = request.getfixturevalue("triton_device")
    else:
        device = "cpu"
        monkeypatch.setenv("STORYTELLER_KERNELS", "reference" if request.param == "reference" else "auto")
        monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda: request.param == "onednn")
        if request.param == "onednn":
            if not torch.backends.mkldnn.is_available():
                pytest.skip("this torch has no oneDNN")
            for name in ("MIN_ROWS", "MIN_WIDTH", "MIN_MULTIPLICATIONS"):
                monkeypatch.setattr(cpu_products, name, 1)
        backend.cache_clear()
    with torch.device(device):
        yield request.param
    backend.cache_clear()
