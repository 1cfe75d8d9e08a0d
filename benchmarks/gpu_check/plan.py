"""The parts: what each runs, and its time limit."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    device: str
    """cuda or cpu."""
    quick: bool
    """Small sizes, to see that every part works."""
    out: Path
    """Folder of the records."""
    text: tuple[str, ...]
    """Overrides that name the stories to train on; none: the built-in ones."""


@dataclass(frozen=True)
class Part:
    """One part."""

    name: str
    command: tuple[str, ...]
    limit_s: float


def parts(request: Request) -> list[Part]:
    """All parts, in the order they run."""
    python, on_cuda, out = sys.executable, request.device == "cuda", request.out
    own = [f"--device={request.device}", f"--out={out}", *["--quick"] * request.quick]

    def module(name: str, *more: str) -> tuple[str, ...]:
        return (python, "-m", f"benchmarks.gpu_check.{name}", *own, *more)

    tests = ["-m", "gpu", "tests"] if on_cuda else ["-m", "", "tests/kernel_ops/test_permute_triton.py"]
    suite = ["--suite", "gpu" if on_cuda else "cpu"]
    few = ["--op", "rms_norm", "--rounds", "2"] if request.quick else ["--rounds", "10"]
    rows = ["--only", "repeat,ep1,single_bf16"] if request.quick else []
    return [
        Part("environment", module("environment"), 60),
        Part(
            "tests",
            (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={out / 'tests.xml'}", *tests),
            150,
        ),
        Part("parity", module("parity"), 60),
        Part("presets", module("presets"), 120),
        Part("certify", (python, "-m", "storyteller_ds", "certify", "--json", *rows), 90),
        Part(
            "kernels", (python, "benchmarks/operations/run.py", *suite, *few, "--out", str(out / "kernels.json")), 150
        ),
        Part("training", module("training", *request.text), 240),
        Part("decoding", module("decoding"), 60),
    ]
