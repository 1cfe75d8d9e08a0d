"""A run with every installed tracker, stopped and resumed; the records of each are read back and compared."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from storyteller_ds.training.callbacks.wandb_items import HISTOGRAM, SAMPLES
from tests.support.distributed import SMALLEST_RUN, TRAIN
from tests.support.wandb_offline import (
    read_alerts,
    read_artifacts,
    read_config,
    read_history,
    read_identity,
    read_system_metrics,
    read_table,
)
from tests.support.warm_machine import WarmMachine

INSTALLED = [name for name in ("tensorboard", "mlflow") if importlib.util.find_spec(name)]
STEPS = (2, 4)
"""The last step of the run, and the last step of its continuation."""


class Tracked(NamedTuple):
    folder: Path
    wandb: list[Path]
    """The offline runs of the first and the second process."""
    metrics: list[dict[str, Any]]
    stderr: str


@pytest.fixture(scope="module")
def tracked(machine: WarmMachine, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    pytest.importorskip("wandb")
    place = tmp_path_factory.mktemp("tracked")
    tiny = [a for a in SMALLEST_RUN if not a.startswith(("tracking.", "train.max_steps", "moe."))]
    settings = ["tracking.wandb=offline", "tracking.wandb_checkpoint=true", "moe.num_experts=4", "moe.top_k=2"]
    settings += ["data.builtin_stories=20", "train.sample_every_steps=1", "train.log_every_steps=1"]
    settings += [f"tracking.{name}=true" for name in INSTALLED]
    env = {"WANDB_CONFIG_DIR": str(place), "WANDB_DATA_DIR": str(place), "WANDB_CACHE_DIR": str(place)}
    errors = ""
    for steps in STEPS:
        command = [str(TRAIN), "--output_dir", str(place / "run"), *tiny, *settings, f"train.max_steps={steps}"]
        run = machine.start(1, command, place / f"{steps}.logs", env)
        assert run.wait(200) == 0, run.stderr
        errors += run.stderr
    lines = (place / "run" / "metrics.jsonl").read_text().splitlines()
    offline = sorted((place / "run" / "wandb").glob("offline-run-*"))
    return Tracked(place / "run", offline, [json.loads(line) for line in lines], errors)


def test_wandb_has_what_metrics_jsonl_has(tracked):
    expected: dict[int, dict[str, Any]] = {}
    for record in tracked.metrics:
        expected.setdefault(record["step"], {}).update(
            {n: v for n, v in record.items() if n != "step" and v is not None}
        )
    rows: dict[Any, dict[str, object]] = {}
    for run in tracked.wandb:
        for row in read_history(run):
            others = ("_", HISTOGRAM, SAMPLES)
            rows.setdefault(row["_step"], {}).update({n: v for n, v in row.items() if not n.startswith(others)})
    assert rows == expected
    assert rows.keys() == {1, 2, 3, 4}


def test_a_resumed_run_is_the_same_wandb_run(tracked):
    first, second = map(read_identity, tracked.wandb)
    assert first["id"] == second["id"] == json.loads((tracked.folder / "config.json").read_text())["wandb_run_id"]
    assert (first["exit_code"], second["exit_code"]) == (0, 0)
    assert read_config(tracked.wandb[1])["train"]["max_steps"] == STEPS[1]


def test_the_histogram_has_a_bar_for_each_expert(tracked):
    loads = {r["step"]: r["expert_load"] for r in tracked.metrics if "expert_load" in r}
    for run in tracked.wandb:
        for row in read_history(run):
            if f"{HISTOGRAM}.values" in row:
                assert row[f"{HISTOGRAM}.values"] == pytest.approx(loads.pop(row["_step"]))
                assert row[f"{HISTOGRAM}.bins"] == [0, 1, 2, 3, 4]
    assert loads == {}


def test_the_table_of_samples_has_a_row_for_each_step_and_prompt(tracked):
    steps = []
    for run in tracked.wandb:
        columns, rows = read_table(run, SAMPLES)
        assert columns == ["step", "prompt", "story"]
        assert {row[1] for row in rows} == {"a"}
        steps += [row[0] for row in rows]
    assert steps == [1, 2, 3, 4]


def test_wandb_is_alerted_to_the_end_and_measures_the_machine(tracked):
    for run in tracked.wandb:
        assert read_alerts(run) == [("run finished", "INFO")]
        assert {"cpu", "proc.memory.rssMB"} & read_system_metrics(run)


def test_the_best_checkpoint_is_an_artifact_without_the_optimizers_part(tracked):
    (name,) = [name for name in read_artifacts(tracked.wandb[1]) if name.startswith("model-")]
    files = read_artifacts(tracked.wandb[1])[name]
    best = min(
        (tracked.folder / "checkpoints").glob("step_*/manifest.json"),
        key=lambda m: json.loads(m.read_text())["val_bpb"],
    )
    assert files == {n: (best.parent / n).stat().st_size for n in files}
    assert {"weights-00000-of-00001.safetensors", "config.json", "tokenizer.json", "manifest.json"} <= files.keys()
    assert not any(name.startswith(("optimizer", "rng")) for name in files)
    assert f"giving {best.parent} to wandb" in tracked.stderr
    assert "kB without the optimizer's part" in tracked.stderr


@pytest.mark.skipif("tensorboard" not in INSTALLED, reason="needs tensorboard")
def test_tensorboard_has_every_step_once(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked.folder / "tensorboard"))
    events.Reload()
    losses = {record["step"]: record["train_loss"] for record in tracked.metrics if "train_loss" in record}
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]
    assert {event.step: event.value for event in events.Scalars("train_loss")} == pytest.approx(losses)


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="needs mlflow-skinny")
def test_mlflow_has_every_step_once(tracked, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=(tracked.folder / "mlruns").as_uri())
    run_id = json.loads((tracked.folder / "config.json").read_text())["mlflow_run_id"]
    history = sorted((m.step, m.value) for m in client.get_metric_history(run_id, "train_loss"))
    assert history == [(r["step"], r["train_loss"]) for r in tracked.metrics if "train_loss" in r]
