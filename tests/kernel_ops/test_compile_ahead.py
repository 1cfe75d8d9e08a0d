"""Every Triton kernel compiles for sm_80 and sm_90, on a machine that has neither.

`CALLS` lists the launches. Each runs once per architecture, on tensors without storage, in a separate process
(in this one, kernels may already be interpreted). There, a launch does not run its kernel but compiles it to machine
code, with the arguments, tiles and warps that the launch function chose. To cover a new kernel, add a call.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one block may have (CUDA C++ Programming Guide, compute capabilities)."""


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a tensor with a shape and a dtype but no data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def rms_norm(T: int, D: int, dtype: torch.dtype, residual: bool = False) -> None:
    from storyteller_kernels.rms_norm.kernel import launch_backward, launch_forward

    x_TD, weight_D = meta(T, D, dtype=dtype), meta(D, dtype=torch.float32)
    y_TD, sum_TD, rstd_T = launch_forward(x_TD, x_TD if residual else None, weight_D, 1e-5)
    launch_backward(y_TD, y_TD if residual else None, sum_TD, weight_D, rstd_T)


def permute(T: int, K: int, D: int, dtype: torch.dtype) -> None:
    from storyteller_kernels.permute.kernel import combine_backward, gather, scatter_sum

    x_TD, token_N, row_TK = meta(T, D, dtype=dtype), meta(T * K, dtype=torch.int64), meta(T, K, dtype=torch.int64)
    weight_TK = meta(T, K, dtype=torch.float32)
    y_ND = gather(x_TD, token_N)
    scatter_sum(y_ND, None, row_TK)
    combine_backward(scatter_sum(y_ND, weight_TK, row_TK), y_ND, weight_TK, token_N, row_TK)


def expert_mlp(T: int, K: int, E: int, D: int, I: int, dtype: torch.dtype, gather: bool = False) -> None:
    from storyteller_kernels.expert_mlp import kernel, swiglu

    x = meta(T if gather else T * K, D, dtype=dtype)
    token_N, end_E = meta(T * K, dtype=torch.int64) if gather else None, meta(E, dtype=torch.int32)
    up_EHD, down_EDI = meta(E, 2 * I, D, dtype=dtype), meta(E, D, I, dtype=dtype)
    hidden_NH, act_NI = kernel.up_swiglu(x, up_EHD, end_E, token_N, keep_hidden=True)
    y_ND = kernel.row_product(act_NI, down_EDI, end_E)
    grad_hidden_NH, act_NI = kernel.down_swiglu_backward(y_ND, down_EDI, end_E, hidden_NH)
    kernel.weight_gradient(y_ND, act_NI, end_E, None)
    kernel.weight_gradient(grad_hidden_NH, x, end_E, token_N)
    kernel.row_product(grad_hidden_NH, up_EHD.transpose(1, 2), end_E)
    swiglu.backward(swiglu.forward(hidden_NH), hidden_NH)


def cross_entropy(C: int, V: int, dtype: torch.dtype, softcap: float | None = None) -> None:
    from storyteller_kernels.cross_entropy.kernel import loss_and_gradient

    loss_and_gradient(meta(C, V, dtype=dtype), meta(C, dtype=torch.int64), -100, softcap, True)


def routing(T: int, D: int, E: int, K: int, dtype: torch.dtype, weight_dtype: torch.dtype = torch.float32) -> None:
    from storyteller_kernels.routing.kernel import launch_forward, launch_logit_gradient, launch_product_gradient

    x_TD, weight_ED, noise_TE = meta(T, D, dtype=dtype), meta(E, D, dtype=weight_dtype), meta(T, E, dtype=FP32)
    out, log_z_T = launch_forward(x_TD, weight_ED, K, noise_TE)
    saved = (out.prob_TE, log_z_T, out.expert_TK, out.weight_TK)
    dlogit_TE = launch_logit_gradient(out.weight_TK, out.prob_TE, out.prob_sum_E, out.z_sum, *saved)
    launch_product_gradient(dlogit_TE, x_TD, weight_ED, need_dx=True, need_dweight=True)


def broken() -> None:
    """Not a kernel of ours: it adds a pointer to a pointer, an error that must be noticed."""
    import triton

    @triton.jit
    def broken_kernel(x_ptr):
        triton.language.store(x_ptr, x_ptr + x_ptr)

    broken_kernel[(1,)](meta(1), enable_fp_fusion=True)


BF16, FP32 = torch.bfloat16, torch.float32
CALLS: dict[str, Callable[[], None]] = {
    "rms_norm bf16 512": functools.partial(rms_norm, 65536, 512, BF16),
    "rms_norm bf16 4096": functools.partial(rms_norm, 8192, 4096, BF16),
    "rms_norm fp32 8192": functools.partial(rms_norm, 4096, 8192, FP32),
    "rms_norm fp16 129": functools.partial(rms_norm, 33, 129, torch.float16),
    "add_rms_norm bf16 1024": functools.partial(rms_norm, 16384, 1024, BF16, residual=True),
    "routing bf16 E=8 K=2": functools.partial(routing, 16384, 1024, 8, 2, BF16),
    "routing bf16 W bf16 E=64 K=4": functools.partial(routing, 4096, 1024, 64, 4, BF16, BF16),
    "routing bf16 E=256 K=8": functools.partial(routing, 1000, 768, 256, 8, BF16),
    "routing fp32 E=8 K=1": functools.partial(routing, 16384, 1024, 8, 1, FP32),
    "routing fp16 E=9 K=3": functools.partial(routing, 333, 264, 9, 3, torch.float16),
    "permute bf16 1024": functools.partial(permute, 16384, 2, 1024, BF16),
    "permute fp32 5000": functools.partial(permute, 999, 4, 5000, FP32),
    "permute fp16 1": functools.partial(permute, 1, 1, 1, torch.float16),
    "expert_mlp bf16 1024 gather": functools.partial(expert_mlp, 16384, 2, 8, 1024, 2048, BF16, gather=True),
    "expert_mlp fp32 256": functools.partial(expert_mlp, 2048, 2, 64, 256, 512, FP32),
    "expert_mlp fp16 129": functools.partial(expert_mlp, 33, 4, 5, 129, 77, torch.float16, gather=True),
    "cross_entropy bf16 50304": functools.partial(cross_entropy, 512, 50304, BF16),
    "cross_entropy fp32 4096 capped": functools.partial(cross_entropy, 512, 4096, FP32, 15.0),
    "expert_mlp bf16 1": functools.partial(expert_mlp, 1, 1, 1, 1, 1, BF16),
}
BROKEN = "broken"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the result of every call: per architecture, a list of kernels or an error."""
    pytest.importorskip("triton", reason="needs triton: pip install 'triton>=3.6'")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton_cache"))}
    environment.pop("TRITON_INTERPRET", None)
    # Triton's warnings are errors: a healthy run shows none.
    command = [sys.executable, "-W", "error::UserWarning", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.timeout(1600)
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("call", CALLS)
def test_compiles(compiled, call, architecture):
    result = compiled[call][str(architecture)]
    assert "error" not in result, result["error"]
    assert result["kernels"], "no kernel was launched"
    for kernel in result["kernels"]:
        assert f"sm_{architecture}" in kernel["target"]
        assert kernel["shared"] <= SHARED_MEMORY[architecture]
        assert kernel["machine_code_bytes"] > 0


@pytest.mark.timeout(1600)
def test_a_kernel_that_cannot_compile_is_seen(compiled):
    for result in compiled[BROKEN].values():
        assert "CompilationError" in result["error"]


def compile_all() -> dict[str, dict[str, Any]]:
    """Make every call once per architecture; runs in the other process."""
    from triton.errors import TritonError

    results: dict[str, dict[str, Any]] = {}
    for name, call in {**CALLS, BROKEN: broken}.items():
        results[name] = {}
        for architecture in SHARED_MEMORY:
            kernels: list[dict[str, Any]] = []
            compile_instead_of_running(architecture, kernels)
            try:
                call()
                results[name][str(architecture)] = {"kernels": kernels}
            except (TritonError, UserWarning) as error:
                results[name][str(architecture)] = {"error": f"{type(error).__name__}: {error}"}
    return results


def compile_instead_of_running(architecture: int, kernels: list[dict[str, Any]]) -> None:
    """From now on, each launch compiles its kernel for sm_<architecture> and appends the result to `kernels`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert all(type(size) is int and 0 < size < 2**31 for size in grid)
        named = {name: options.pop(name) for name in self.arg_names if name in options}
        values = dict(zip(self.arg_names, args, strict=False)) | named
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.params):
            value = values.get(parameter.name, parameter.default)
            # As in a real launch: None and 1 are compiled into the kernel, and it may rely on multiples of 16.
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[parameter.name], constants[(place,)] = "constexpr", value
                continue
            signature[parameter.name] = triton_type(value)
            if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self, signature, constants, attributes)
        built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        target = next(line for line in built.asm["ptx"].splitlines() if line.startswith(".target"))
        kernels.append(
            {
                "name": self.__name__,
                "target": target,
                "shared": built.metadata.shared,
                "machine_code_bytes": len(built.asm["cubin"]),
            }
        )

    JITFunction.run = run


def triton_type(value: Any) -> str:
    """Triton's name for the type of a launch argument."""
    if isinstance(value, Tensor):
        names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int64": "i64", "int32": "i32"}
        return "*" + names[str(value.dtype).removeprefix("torch.")]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


if __name__ == "__main__":
    json.dump(compile_all(), sys.stdout)
