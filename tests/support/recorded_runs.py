"""Run folders with made-up records, as a run would have written them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storyteller_ds.config.load import load_config

LAYERS, EXPERTS, TOKENS_A_STEP = 4, 8, 2048
"""Sizes of the quickstart preset."""


def train_record(step: int, seed: int = 0, **others: Any) -> dict[str, Any]:
    """The record of a training step, with values that depend only on step and seed."""
    random = np.random.default_rng((seed, step))
    load_LE = random.dirichlet(np.full(EXPERTS, 50.0), LAYERS)
    layers = {
        "expert_load_cv": load_LE.std(axis=1) * EXPERTS,
        "router_entropy": random.uniform(1.5, 2, LAYERS),
        "router_margin": random.uniform(0, 0.3, LAYERS),
        "router_drift": random.uniform(0, 0.2, LAYERS),
    }
    return {
        "step": step,
        "tokens": step * TOKENS_A_STEP,
        "train_loss": 3 + 4 * float(np.exp(-step / 40)) + float(random.normal(0, 0.05)),
        "lr": 1e-3,
        "grad_norm": float(random.uniform(0.5, 1)),
        "step_time_s": 0.25,
        "data_wait": 0.01,
        "forward_s": 0.08,
        "backward_s": 0.12,
        "optimizer_s": 0.03,
        "tokens_per_s": 8000.0,
        "mfu": 0.5,
        "host_memory_bytes": 2**30,
        "skipped_steps": 0,
        "undone_steps": 0,
        "layer_expert_load": load_LE.tolist(),
        **{name: float(value.mean()) for name, value in layers.items()},
        **{f"layer_{name}": value.tolist() for name, value in layers.items()},
        **others,
    }


def eval_record(step: int, bpb: float, **others: Any) -> dict[str, Any]:
    """The record of a validation."""
    return {
        "step": step,
        "tokens": step * TOKENS_A_STEP,
        "val_tokens": 1000,
        "val_loss": 2 * bpb,
        "val_ppl": float(np.exp(2 * bpb)),
        "val_bpb": bpb,
        "undone_steps": 0,
        **others,
    }


def write_run(folder: Path, records: Sequence[dict[str, Any]], samples: str = "", **settings: Any) -> Path:
    """Write a run folder of the quickstart preset, without checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "run": load_config("quickstart", settings).run.model_dump(mode="json"),
        "deepspeed": None,
        "topology": {"world_size": 1, "ep_size": 1, "zero_stage": None, "device": "cpu"},
        "machine": {"processor": "2 x imagined"},
        "command": "storyteller train --config quickstart",
        "wandb_run_id": f"id-of-{folder.name}",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "tokenizer.json").write_text("{}")
    if samples:
        (folder / "samples.md").write_text(samples)
    return folder


def finished_run(folder: Path, steps: int = 60, seed: int = 0, **settings: Any) -> Path:
    """Write the folder of a finished run, with samples."""
    final = {"final_val_loss": 2.2, "final_val_ppl": float(np.exp(2.2)), "final_val_bpb": 1.1}
    records = [train_record(step, seed) for step in range(1, steps + 1)]
    evals = [eval_record(steps // 2, 1.5), eval_record(steps, 1.2, **final)]
    samples = f"## Step {steps}\n\n> **Once upon a time** there was <b>a fox</b>.\n\n"
    return write_run(folder, [*records, *evals], samples, **settings)
