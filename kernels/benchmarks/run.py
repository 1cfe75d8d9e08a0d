"""How fast a mixture-of-experts layer is here, against its peers and its limit, in one interleaved run.

    python kernels/benchmarks/run.py --suite cpu --out FILE.json

Correctness comes first: an implementation whose output differs from the reference has no time. Every round
times each implementation once, so that a change of the machine's speed meets all of them; the figure is the
median. The limit is a balanced batched matrix product of the same shapes, without any routing.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from storyteller_kernels.dispatch import backend
from torch import Tensor, nn
from torch.nn import functional as F

from storyteller_ds.config import load_config
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.moe import LocalMoE

D, I, E, K, TOKENS = 256, 512, 8, 2, 2048
ROUNDS, WARM_UP = 15, 3


def main() -> None:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["cpu"], default="cpu")
    parser.add_argument("--out", type=Path, help="Write the record here (JSON).")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    ours = moe_layer()
    layers: dict[str, nn.Module] = {"ours": ours, "transformers Mixtral (eager)": mixtral_block(ours)}
    x = torch.randn(TOKENS, D)
    reference = output_of(ours, x)
    for name, layer in layers.items():
        torch.testing.assert_close(output_of(layer, x), reference, rtol=1e-4, atol=1e-5, msg=f"{name} is wrong")
    times = interleaved(
        {**{n: step_of(layer, x) for n, layer in layers.items()}, "bare bmm (limit)": bare_bmm(ours, x)}
    )
    limit = times["bare bmm (limit)"]
    for name, seconds in times.items():
        print(f"{name:32s} {1000 * seconds:8.1f} ms   limit / it = {limit / seconds:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(record(times), indent=2) + "\n")


def moe_layer() -> LocalMoE:
    """Our layer at the benchmark's shape."""
    sizes = [f"model.hidden_size={D}", f"model.intermediate_size={I}", f"moe.num_experts={E}", f"moe.top_k={K}"]
    run = load_config(overrides=sizes).run
    layer = LocalMoE(run.model, run.moe)
    init_parameters(layer, run.model, 0)
    return layer


def mixtral_block(ours: LocalMoE) -> nn.Module:
    """transformers' block with the same weights."""
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=D, intermediate_size=I, num_local_experts=E, num_experts_per_tok=K)
    config._experts_implementation = "eager"
    block = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        block.gate.weight.copy_(ours.router.weight)
        block.experts.gate_up_proj.copy_(ours.experts.gate_up_proj)
        block.experts.down_proj.copy_(ours.experts.down_proj)
    return block


def output_of(layer: nn.Module, x: Tensor) -> Tensor:
    """[T, D] to [T, D], whatever else the layer returns."""
    out = layer(x[None])
    return (out[0] if isinstance(out, tuple) else out).reshape(x.shape)


def step_of(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward."""
    cotangent = torch.randn_like(x)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        output_of(layer, x.detach().requires_grad_()).backward(cotangent)

    return step


def bare_bmm(ours: LocalMoE, x: Tensor) -> Callable[[], None]:
    """The same products over perfectly balanced rows."""
    rows = torch.randn(E, x.shape[0] * K // E, D)
    up, down = ours.experts.gate_up_proj, ours.experts.down_proj
    cotangent = torch.randn_like(rows)

    def step() -> None:
        ours.zero_grad(set_to_none=True)
        gate, value = torch.bmm(rows.requires_grad_(), up.transpose(1, 2)).chunk(2, dim=-1)
        torch.bmm(F.silu(gate) * value, down.transpose(1, 2)).backward(cotangent)

    return step


def interleaved(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each step."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARM_UP + ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= WARM_UP:
                samples[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in samples.items()}


def record(times: dict[str, float]) -> dict[str, object]:
    """What a later reader needs to know about these figures."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": backend().name,
        "commit": commit.stdout.strip(),
        "shape": {"D": D, "I": I, "E": E, "K": K, "tokens": TOKENS, "dtype": "fp32"},
        "median_seconds": times,
    }


if __name__ == "__main__":
    main()
