"""llama.cpp in a separate process, so that neither a hang nor a crash nor its output reaches ours."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from storyteller_ds.errors import UserError

CHILD = Path(__file__).with_name("llama_cpp_child.py")
SECONDS = 600.0
"""Time after which it counts as hung: half a billion weights on two cores take one second."""


def completions(
    path: Path, context: int, requests: Sequence[Mapping[str, Any]], seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """The first choice of llama.cpp's server for each request, and its `timings` (ms).

    Args:
        path: a GGUF file.
        context: length of the context (tokens).
        requests: in the format of its completions endpoint.
        seconds: time limit, after which it is killed.

    Raises:
        UserError: it ended without an answer; says how.
    """
    task = {"model": str(path), "context": context, "threads": torch.get_num_threads(), "requests": requests}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(CHILD)],
            input=json.dumps(task),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # it would start a debugger for one
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"llama.cpp did not read {path.name} in {seconds:g} s, and was ended") from None
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"llama.cpp could not read {path.name} ({how}): {lines[-1]:.300}")
    return [{**answer["choices"][0], "timings": answer["timings"]} for answer in json.loads(done.stdout)]
