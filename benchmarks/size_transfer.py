"""Whether model.size transfers the learning rate between sizes: python -m benchmarks.size_transfer TEXT VALIDATION

Each size is trained on the same number of tokens with several multiples of its learning rate. The best multiple of a
size is the lowest point of a parabola fitted to its losses over the logarithm of the rate. A record goes to
benchmarks/results/size_transfer.
"""

import json
import statistics
import sys
import tempfile
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
TOKENS = 800_000
"""Training tokens: each is seen once."""
BOUND = 1.2
"""The best multiple of a size may differ from that of the smallest by at most this factor."""


def bits_per_byte(size: str, multiple: float, seed: int, text: str, validation: str) -> float:
    """Train a model and score it on the validation text."""
    chosen = {"model.size": size, "data.source": text, "data.validation": validation, "seed": seed}
    run = st.load_config("quickstart", chosen).run
    steps = TOKENS // (run.train.global_batch_size * run.data.sequence_length)
    quiet = {"tracking.wandb": "disabled", "train.eval_every_steps": 0, "train.sample_every_steps": 0}
    quiet |= {"train.sample_prompts": [], "checkpoint.every_steps": 0}
    settings = {**chosen, **quiet, "train.max_steps": steps, "optimizer.lr": run.optimizer.lr * multiple}
    with tempfile.TemporaryDirectory() as folder:
        done = st.train("quickstart", settings, output_dir=folder)
        return float(done.metrics[-1]["final_val_bpb"])


def best_multiple(losses: dict[float, float]) -> float:
    """Minimum of a parabola fitted to the losses over log multiple, using the lowest point and its neighbors."""
    multiples = sorted(losses)
    at = min(max(multiples.index(min(losses, key=losses.__getitem__)), 1), len(multiples) - 2)
    near = multiples[max(at - 2, 0) : at + 3]
    curve = np.polynomial.Polynomial.fit(np.log(near), [losses[m] for m in near], 2).convert()
    return float(np.exp(-curve.coef[1] / (2 * curve.coef[2])))


def main() -> None:
    """Measure, print a table, and write the record; what it already has is not measured again."""
    text, validation = sys.argv[1:]
    machine = describe("cpu", None)
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{slug(machine_name(machine))}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = earlier.get("bits_per_byte", {}) if earlier.get("tokens") == TOKENS else {}
    record = {"tokens": TOKENS, "bits_per_byte": results, "machine": machine}
    runs = ((size, multiple, seed) for size in SIZES for multiple in MULTIPLES for seed in range(SIZES[size]))
    for size, multiple, seed in runs:
        found = results.setdefault(size, {}).setdefault(f"{multiple:g}", {})
        if str(seed) not in found:
            found[str(seed)] = bits_per_byte(size, multiple, seed, text, validation)
            write_atomically(path, json.dumps(record, indent=1) + "\n")
        print(f"{size} at {multiple:g} times its rate, seed {seed}: {found[str(seed)]:.4f} bits per byte", flush=True)
    best = {
        size: best_multiple({float(m): statistics.mean(by_seed.values()) for m, by_seed in results[size].items()})
        for size in SIZES
    }
    apart = {size: max(at / best[SMALLEST], best[SMALLEST] / at) for size, at in best.items()}
    print(f"best multiples: {best}; apart from {SMALLEST}: {apart}; at most {BOUND}")
    write_atomically(path, json.dumps({**record, "best_multiple": best, "apart": apart}, indent=1) + "\n")


if __name__ == "__main__":
    main()
