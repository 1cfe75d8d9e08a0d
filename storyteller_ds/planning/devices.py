"""The devices that a run can be planned for, with the rates that their makers publish and the sources.

Rates of matrix products are dense (no sparsity), with fp32 accumulation. A link's rate is per device and direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.errors import UserError

GB = 10**9
TERA = 10**12
CUDA_CONTEXT = GB // 2
"""GPU memory for kernels, cuBLAS's workspace and the driver: half a gigabyte is usual; NVIDIA states no figure."""
NCCL = 3 * GB // 10
"""NCCL's own buffers on a GPU, if there are several ranks."""
IMPORTS = GB // 2
"""Host memory of Python with torch and DeepSpeed imported: 350 to 500 MB (ds_configs/README.md)."""


@dataclass(frozen=True)
class Device:
    """One kind of device."""

    name: str
    kind: str
    """cuda, mps or cpu."""
    memory: int
    """Bytes."""
    rates: Mapping[str, float]
    """Number format -> matrix products [FLOP/s]."""
    copies: float
    """Memory bandwidth [byte/s]."""
    link: float
    """Bandwidth to devices in the same machine [byte/s]."""
    network: float
    """Bandwidth to other machines [byte/s]."""
    per_machine: int
    """Devices in a typical machine."""
    dtype: str
    """What precision.dtype=auto means on it."""
    source: str
    is_measured: bool = False
    """Whether the rates are not published ones but what large operations reach here."""

    @property
    def context(self) -> int:
        """Memory in use besides tensors (bytes)."""
        return CUDA_CONTEXT if self.kind == "cuda" else IMPORTS


_INFINIBAND = "one 400 Gb/s InfiniBand port a card, as in DGX H100"
_PCIE = "no NVLink: PCI Express x16"
ETHERNET = 25 / 8 * GB
"""25 Gb/s, the assumed network of machines that are not training servers."""
_AMPERE = {"bf16": 312 * TERA, "fp16": 312 * TERA, "fp32": 19.5 * TERA}
_HOPPER = {"bf16": 989.5 * TERA, "fp16": 989.5 * TERA, "fp32": 67 * TERA}

DEVICES = {
    device.name: device
    for device in (
        Device(
            "h200-141", "cuda", 141 * GB, _HOPPER, 4.8e12, 450 * GB, 50 * GB, 8, "bf16",
            f"NVIDIA H200 data sheet (SXM): 141 GB, 4.8 TB/s, 900 GB/s NVLink both ways; {_INFINIBAND}",
        ),
        Device(
            "h100-80", "cuda", 80 * GB, _HOPPER, 3.35e12, 450 * GB, 50 * GB, 8, "bf16",
            f"NVIDIA H100 data sheet (SXM): 80 GB, 3.35 TB/s, 900 GB/s NVLink both ways; {_INFINIBAND}",
        ),
        Device(
            "a100-80", "cuda", 80 * GB, _AMPERE, 2.039e12, 300 * GB, 25 * GB, 8, "bf16",
            "NVIDIA A100 data sheet (80 GB SXM): 312 TFLOPS, 2,039 GB/s, 600 GB/s NVLink both ways; one 200 Gb/s "
            "InfiniBand port a card, as in DGX A100",
        ),
        Device(
            "rtx5090-32", "cuda", 32 * GB, {"bf16": 209.5 * TERA, "fp16": 209.5 * TERA, "fp32": 104.8 * TERA},
            1.792e12, 64 * GB, ETHERNET, 4, "bf16",
            f"NVIDIA RTX Blackwell architecture paper: 209.5 TFLOPS with fp32 sums, 1,792 GB/s; {_PCIE}, version 5",
        ),
        Device(
            "rtx4090-24", "cuda", 24 * GB, {"bf16": 165.2 * TERA, "fp16": 165.2 * TERA, "fp32": 82.6 * TERA},
            1.008e12, 32 * GB, ETHERNET, 4, "bf16",
            f"NVIDIA Ada architecture paper: 165.2 TFLOPS with fp32 sums, 1,008 GB/s; {_PCIE}, version 4",
        ),
        Device(
            "t4-16", "cuda", 16 * GB, {"fp16": 65 * TERA, "fp32": 8.1 * TERA}, 3.2e11, 16 * GB, ETHERNET, 4, "fp16",
            f"NVIDIA T4 data sheet: 65 TFLOPS fp16, 8.1 fp32, 320 GB/s (bf16 is emulated); {_PCIE}, version 3",
        ),
        Device(
            # 10 cores with 128 lanes each at 1.4 GHz, two operations per cycle.
            "m3-32", "mps", 24 * GB, dict.fromkeys(("fp32", "fp16", "bf16"), 3.6 * TERA), 1e11, ETHERNET, ETHERNET,
            1, "fp32",
            "Apple M3 specifications: 100 GB/s; Apple publishes no FLOPS: 10 cores x 128 lanes x 2 x 1.4 GHz; of 32 GB "
            "the GPU gets three quarters (Metal's recommendedMaxWorkingSetSize)",
        ),
    )
}  # fmt: skip
HERE = "here"
"""The device of this machine that training would use."""
OF_THIS_MACHINE = (HERE, "cpu", "cuda", "mps")
"""Devices whose rates are measured (engines/device_record.py)."""
NAMES = (*DEVICES, *OF_THIS_MACHINE)


def published(name: str) -> Device:
    """A device of the table.

    Raises:
        UserError: no device has this name.
    """
    if name not in DEVICES:
        raise UserError(f"--device={name}: no device is called so{did_you_mean(name.lower(), NAMES)}")
    return DEVICES[name]
