"""Which packing of stories learns best: python -m benchmarks.packing TEXT

Trains the quickstart preset with each packing, with and without document masks, for the same number of steps and with
three seeds in turn. All are scored in the same way on held-out stories of the text: every story from its beginning,
alone in its sequence. A record goes to benchmarks/results/packing.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

import storyteller_ds as st
from benchmarks.operations.record import describe, machine_name, slug
from storyteller_ds.conversion.quantize import score
from storyteller_ds.data.batching.batches import BatchSplit
from storyteller_ds.data.batching.loading import validation_batches
from storyteller_ds.data.corpus import open_corpus, prepare_corpus
from storyteller_ds.durable import write_atomically
from storyteller_ds.generation.load import load_decoder

RECORDS = Path(__file__).resolve().parent / "results" / "packing"
VARIANTS = (("stream", False), ("stream", True), ("best_fit", False), ("best_fit", True), ("pad", False))
SEEDS = (0, 1, 2)
STEPS = 300
CPU = torch.device("cpu")


def trained(settings: dict[str, object]) -> tuple[float, float]:
    """Bits per byte of a trained model, story by story, and the median time of its steps (s)."""
    quiet = {"tracking.wandb": "disabled", "train.eval_every_steps": 0, "train.sample_every_steps": 0}
    quiet |= {"train.sample_prompts": [], "checkpoint.every_steps": 0, "train.max_steps": STEPS}
    alone = st.load_config("quickstart", {**settings, "data.packing": "pad"}).run
    corpus = open_corpus(alone, prepare_corpus(alone, lambda _: None))
    with tempfile.TemporaryDirectory() as folder:
        done = st.train("quickstart", {**settings, **quiet}, output_dir=folder)
        step_s = statistics.median(record["step_time_s"] for record in done.metrics if "step_time_s" in record)
        decoder = load_decoder(Path(folder), CPU, lambda _: None).decoder
    return score(decoder, validation_batches(alone, corpus, BatchSplit(0, 1, 8, 1)), None, CPU).bits_per_byte, step_s


def main() -> None:
    """Measure, print a table, and write the record."""
    (text,) = sys.argv[1:]
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in SEEDS:
        for packing, masked in VARIANTS:
            settings = {"data.source": text, "data.packing": packing, "data.document_mask": masked, "seed": seed}
            name = f"{packing}, document masks" if masked else packing
            found.setdefault(name, []).append(trained(settings))
            print(f"{name}, seed {seed}: %.4f bits per byte, %.3f s a step" % found[name][-1], flush=True)
    for name, runs in found.items():
        scores, times = zip(*runs, strict=True)
        print(f"{name}: {statistics.mean(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})", end="")
        print(f", {statistics.median(times):.3f} s a step")
    machine = describe("cpu", None)
    RECORDS.mkdir(parents=True, exist_ok=True)
    record = {"steps": STEPS, "bits_per_byte_and_step_s": found, "machine": machine}
    write_atomically(RECORDS / f"{slug(machine_name(machine))}.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
