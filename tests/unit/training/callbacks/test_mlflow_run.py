"""A run in MLflow's file store, read back by its public client."""

import time
from pathlib import Path

import pytest

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.errors import EXIT_INTERRUPTED
from storyteller_ds.training.callbacks import mlflow_run
from storyteller_ds.training.callbacks.callback import Sample
from storyteller_ds.training.callbacks.mlflow_run import MlflowRun

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for name, value in mlflow_run._DEFAULTS.items():  # restored afterwards
        monkeypatch.setenv(name, value)


def record(step: int) -> dict[str, object]:
    return {"step": step, "train_loss": 10.0 - step, "lr": 0.1, "grad_norm": None, "expert_load": [0.5, 0.5]}


def track(folder: Path, steps: range, run_id: str | None = None, exit_code: int = 0) -> str:
    config = {"model": {"layers": 2}, "seed": 0}
    run = MlflowRun(folder / "mlruns", "stories", "tiny", config, run_id, pytest.fail)
    for step in steps:
        run.on_train(record(step))
    run.on_eval({"step": steps[-1], "val_loss": 5.0})
    run.on_samples(TrainState(step=steps[-1]), [Sample("Once", " upon a time")])
    run.on_end(exit_code)
    assert run.run_id is not None
    return run.run_id


def client(folder: Path):
    return mlflow.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())


def values(folder: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client(folder).get_metric_history(run_id, name))


def test_a_run_comes_back(tmp_path):
    run_id = track(tmp_path, range(1, 4))
    run = client(tmp_path).get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert client(tmp_path).get_experiment(run.info.experiment_id).name == "stories"
    assert run.data.params == {"model.layers": "2", "seed": "0"}
    assert run.data.metrics.keys() == {"train_loss", "lr", "val_loss"}
    assert values(tmp_path, run_id, "train_loss") == [(1, 9.0), (2, 8.0), (3, 7.0)]
    (story,) = (tmp_path / "mlruns").rglob("step_00000003.txt")
    assert story.read_text() == "Once upon a time"


def test_a_resumed_run_is_the_same_and_doubles_no_step(tmp_path):
    run_id = track(tmp_path, range(1, 6), exit_code=EXIT_INTERRUPTED)
    assert client(tmp_path).get_run(run_id).info.status == "KILLED"
    assert track(tmp_path, range(4, 8), run_id) == run_id  # from a checkpoint at step 3
    assert client(tmp_path).get_run(run_id).info.status == "FINISHED"
    assert values(tmp_path, run_id, "train_loss") == [(step, 10.0 - step) for step in range(1, 8)]
    assert values(tmp_path, run_id, "val_loss") == [(5, 5.0), (7, 5.0)]


def test_variables_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere" / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of-env")
    run_id = track(tmp_path, range(1, 2))
    elsewhere = client(tmp_path / "elsewhere")
    assert elsewhere.get_experiment(elsewhere.get_run(run_id).info.experiment_id).name == "of-env"
    assert not (tmp_path / "mlruns").exists()


def test_an_unreachable_server_is_one_line_and_no_delay(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lines: list[str] = []
    before = time.monotonic()
    run = MlflowRun(tmp_path, "stories", None, {}, None, lines.append)
    run.on_train(record(1))
    run.on_end(0)
    assert time.monotonic() - before < mlflow_run.START_LIMIT_SECONDS
    (line,) = lines
    assert "no longer" in line
    assert "\n" not in line


def test_a_store_that_breaks_in_mid_run_is_one_line(tmp_path, monkeypatch):
    lines: list[str] = []
    run = MlflowRun(tmp_path / "mlruns", "stories", None, {}, None, lines.append)

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", refuse)
    for step in range(1, 4):
        run.on_train(record(step))
    run.on_end(0)
    (line,) = lines
    assert "No space left" in line
