"""Whether model.size transfers the learning rate between sizes: python -m benchmarks.size_transfer TEXT VALIDATION

Each size is trained on the same number of tokens with several learning rates. The best rate of a size is the lowest
point of a parabola over the logarithm of the rate, fitted to all of its runs. It is compared with the rate that
model.size sets. A record goes to benchmarks/results/size_transfer.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import storyteller_ds as st
from benchmarks.operations.record import describe, machine_name, slug
from storyteller_ds.durable import write_atomically

RECORDS = Path(__file__).resolve().parent / "results" / "size_transfer"
SIZES = {"1M": 4, "4M": 4, "14M": 1}
"""Number of seeds of each size; the largest takes most of the time."""
SMALLEST = "1M"
MULTIPLES = (0.35, 0.5, 0.71, 1.0, 1.41, 2.0)
"""Learning rates to try, in multiples of the one that model.size sets."""
TOKENS = 800_000
"""Training tokens: each is seen once."""
BOUND = 1.2
"""The best multiple of a size may differ from that of the smallest by at most this factor."""


def rate_of(size: str) -> float:
    """The learning rate that model.size sets."""
    return st.load_config("quickstart", {"model.size": size}).run.optimizer.lr


def bits_per_byte(size: str, rate: float, seed: int, text: str, validation: str) -> float:
    """Train a model and score it on the validation text."""
    chosen = {"model.size": size, "data.source": text, "data.validation": validation, "seed": seed}
    run = st.load_config("quickstart", chosen).run
    steps = TOKENS // (run.train.global_batch_size * run.data.sequence_length)
    quiet = {"tracking.wandb": "disabled", "train.eval_every_steps": 0, "train.sample_every_steps": 0}
    quiet |= {"train.sample_prompts": [], "checkpoint.every_steps": 0}
    settings = {**chosen, **quiet, "train.max_steps": steps, "optimizer.lr": rate}
    with tempfile.TemporaryDirectory() as folder:
        done = st.train("quickstart", settings, output_dir=folder)
        return float(done.metrics[-1]["final_val_bpb"])


def best_rate(found: Mapping[str, Mapping[str, float]]) -> float:
    """The lowest point of a parabola over the logarithm of the rate.

    Args:
        found: bits per byte by learning rate and seed.

    Raises:
        ValueError: the parabola has no lowest point.
    """
    rates, losses = zip(*((float(rate), bpb) for rate, seeds in found.items() for bpb in seeds.values()), strict=True)
    curve = np.polynomial.Polynomial.fit(np.log(rates), losses, 2).convert()
    if curve.coef[2] <= 0:
        raise ValueError("the losses do not rise on both sides of a best rate; try other multiples")
    return float(np.exp(-curve.coef[1] / (2 * curve.coef[2])))


def main() -> None:
    """Measure, print the best rates, and write the record; what it already has is not measured again."""
    text, validation = sys.argv[1:]
    machine = describe("cpu", None)
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{slug(machine_name(machine))}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = earlier.get("bits_per_byte", {}) if earlier.get("tokens") == TOKENS else {}
    record = {"tokens": TOKENS, "bits_per_byte": results, "machine": machine}
    own = {size: rate_of(size) for size in SIZES}
    runs = ((size, multiple, seed) for size in SIZES for multiple in MULTIPLES for seed in range(SIZES[size]))
    for size, multiple, seed in runs:
        rate = f"{own[size] * multiple:.3g}"
        found = results.setdefault(size, {}).setdefault(rate, {})
        if str(seed) not in found:
            found[str(seed)] = bits_per_byte(size, float(rate), seed, text, validation)
            write_atomically(path, json.dumps(record, indent=1) + "\n")
        print(f"{size} at {rate}, seed {seed}: {found[str(seed)]:.4f} bits per byte", flush=True)
    best = {size: best_rate(results[size]) for size in SIZES}
    best_multiple = {size: rate / own[size] for size, rate in best.items()}
    smallest = best_multiple[SMALLEST]
    apart = {size: max(at / smallest, smallest / at) for size, at in best_multiple.items()}
    for size in SIZES:
        line = f"{size}: best at {best[size]:.3g}, {best_multiple[size]:.2f} times the rate of the size"
        print(f"{line}; factor to the multiple of {SMALLEST}: {apart[size]:.2f} (at most {BOUND})")
    summary = {"best_rate": best, "best_multiple": best_multiple, "apart": apart}
    write_atomically(path, json.dumps({**record, **summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
