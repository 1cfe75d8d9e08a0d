"""The smallest kernel: whether Triton can compile for this machine and run what it compiled."""

import torch
import triton
import triton.language as tl


def run_probe() -> None:
    """Write one number with Triton and read it back.

    Raises:
        RuntimeError: it is another number. Whatever Triton raises also passes through.
    """
    out = torch.zeros(1, dtype=torch.int32, device="cuda")
    probe_kernel[(1,)](out)
    if out.item() != 1:
        raise RuntimeError(f"a kernel that writes 1 wrote {out.item()}")


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def probe_kernel(out_ptr: tl.tensor) -> None:
    """out = 1."""
    tl.store(out_ptr, 1)
