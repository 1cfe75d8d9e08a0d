"""A run's records in MLflow, through its public client, without ever delaying or ending the run.

A server that hangs must not hang the training loop, so all calls happen on one daemon thread. MLflow's environment
variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the rest) apply.
"""

import importlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.load import flatten
from storyteller_ds.errors import EXIT_DONE, EXIT_INTERRUPTED
from storyteller_ds.records.metrics import attempt_of
from storyteller_ds.redaction import one_line
from storyteller_ds.training.callbacks.callback import Callback, Record, Sample
from storyteller_ds.training.callbacks.scalars import scalars

START_LIMIT_SECONDS = 25.0
CLOSE_LIMIT_SECONDS = 15.0
QUEUE_LIMIT = 10_000
"""Number of waiting records at which a store counts as hung."""
_PARAMETERS_AT_ONCE = 100
"""MLflow's own limit."""
_DEFAULTS = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # files need no database; MLflow wants it to be a deliberate choice
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Environment variables that are set unless the user has set them."""


class _Stories(NamedTuple):
    step: int
    samples: Sequence[Sample]


_Item = Record | _Stories | int  # the exit code comes last


class MlflowRun(Callback):
    """An MLflow run that gets the numbers of every record; its step counts all steps attempted, including undone ones.

    Construction waits at most `START_LIMIT_SECONDS`, and on_end at most `CLOSE_LIMIT_SECONDS`. No error of MLflow or
    its server is raised: `warn` gets it in one line, and MLflow tracking is off from then on. A resumed run continues
    the same MLflow run; steps that it already has are not sent again.

    Args:
        folder: folder of the file store, unless MLFLOW_TRACKING_URI names another store.
        experiment: name of the experiment, unless MLFLOW_EXPERIMENT_NAME names another.
        run_name: name of the run; None: chosen by MLflow.
        config: recorded as the run's parameters.
        run_id: MLflow run to continue; None: a new one.
        warn: called with one line of text, possibly on that thread.
    """

    def __init__(
        self,
        folder: Path,
        experiment: str,
        run_name: str | None,
        config: Mapping[str, Any],
        run_id: str | None,
        warn: Callable[[str], None],
    ) -> None:
        self.run_id = run_id
        """The MLflow run to resume this run with."""
        self._warn, self._failed = warn, False
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or folder.absolute().as_uri()
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
        self._run_name, self._config = run_name, config
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        started = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(started,), name="mlflow", daemon=True)
        self._thread.start()
        if not started.wait(START_LIMIT_SECONDS):
            self._fail(f"no answer from {self._uri} within {START_LIMIT_SECONDS:.0f} s")

    def on_train(self, record: Record) -> None:
        """Queue its numbers."""
        self._put(record)

    def on_eval(self, record: Record) -> None:
        """Queue its numbers."""
        self._put(record)

    def on_samples(self, state: TrainState, samples: Sequence[Sample]) -> None:
        """Queue the stories: one text file per step."""
        self._put(_Stories(state.step, samples))

    def on_end(self, exit_code: int) -> None:
        """Write what is queued, and mark the run as ended."""
        if self._failed:
            return
        self._queue.put(exit_code)
        self._thread.join(CLOSE_LIMIT_SECONDS)
        if self._thread.is_alive():
            self._fail(f"it did not finish within {CLOSE_LIMIT_SECONDS:.0f} s")

    def _put(self, item: _Item) -> None:
        if self._queue.qsize() >= QUEUE_LIMIT:
            self._fail(f"{QUEUE_LIMIT} records are waiting")
        if not self._failed:
            self._queue.put(item)

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self._warn(f"MLflow tracks this run no longer (metrics.jsonl goes on): {reason}")

    # From here on: methods that run on the thread.

    def _work(self, started: threading.Event) -> None:
        try:
            self._start()
            started.set()
            item: _Item = {}
            while not isinstance(item, int) and not self._failed:
                item = self._queue.get()
                self._send(item)
        except Exception as error:  # stores raise whatever their libraries raise, and none of it may end a run
            self._fail(one_line(error))
        started.set()

    def _start(self) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        self._sent = {"lr": 0, "val_loss": 0}
        """Field -> last step sent of the records that have it."""
        if self.run_id is not None:
            self._client.update_run(self.run_id, "RUNNING")
            for name in self._sent:
                history = self._client.get_metric_history(self.run_id, name)
                self._sent[name] = max((metric.step for metric in history), default=0)
            return
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(experiment, run_name=self._run_name).info.run_id
        parameters = [self._mlflow.entities.Param(name, str(value)) for name, value in flatten(self._config).items()]
        for first in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self.run_id, params=parameters[first : first + _PARAMETERS_AT_ONCE])

    def _send(self, item: _Item) -> None:
        if isinstance(item, int):
            status = {EXIT_DONE: "FINISHED", EXIT_INTERRUPTED: "KILLED"}.get(item, "FAILED")
            self._client.set_terminated(self.run_id, status)
        elif isinstance(item, _Stories):
            text = "\n\n".join(f"{prompt}{continuation}" for prompt, continuation in item.samples)
            self._client.log_text(self.run_id, text, f"samples/step_{item.step:08d}.txt")
        else:
            kind, step, now = "lr" if "lr" in item else "val_loss", attempt_of(item), int(1000 * time.time())
            if step <= self._sent[kind]:
                return
            numbers = scalars(item, with_lists=False).items()
            metrics = [self._mlflow.entities.Metric(name, number, now, step) for name, number in numbers]
            self._client.log_batch(self.run_id, metrics=metrics)
