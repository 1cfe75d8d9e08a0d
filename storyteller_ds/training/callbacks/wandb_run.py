"""A run's records on Weights & Biases, without ever delaying or ending the run.

Every call into wandb waits on a service process, and a service that hangs must not hang the training loop: all calls
happen on one daemon thread.

wandb's environment variables (WANDB_MODE, WANDB_PROJECT, WANDB_NAME, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS,
WANDB_DIR, WANDB_RUN_ID, WANDB_RESUME and the rest) apply where the run config keeps its defaults: wandb reads them
itself wherever it is given no argument.
"""

import collections
import contextlib
import importlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.filesize import decimal

from storyteller_ds.checkpoint.names import WEIGHTS
from storyteller_ds.checkpoint.read import Checkpoint
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.distributed.supervision.processes import command_line
from storyteller_ds.redaction import one_line
from storyteller_ds.training.callbacks.alerts import Alerts, end_of_run
from storyteller_ds.training.callbacks.callback import Callback, Record, Sample
from storyteller_ds.training.callbacks.wandb_items import Items, SampleRows

WandbMode = Literal["auto", "online", "offline", "disabled"]
_Item = Record | SampleRows | Checkpoint | int  # the exit code comes last

SERVER_WAIT_SECONDS = 10.0
# Service start, the wait for the server, and the second start without it.
START_LIMIT_SECONDS = 25.0
UPLOAD_WAIT_SECONDS = 10.0
# A checkpoint is large, and is uploaded only on demand.
CHECKPOINT_WAIT_SECONDS = 600.0
# On top of the wait for uploads.
CLOSE_SECONDS = 4.0
# After the service was killed, the thread has nothing left to wait for but its own cleanup.
KILLED_LIMIT_SECONDS = 3.0
# A healthy service takes a record in milliseconds: a backlog of this size means that it hangs.
QUEUE_LIMIT = 10_000
_SERVICE = "wandb-core"
_YES = ("1", "true", "yes", "on")
SETTINGS: Mapping[str, object] = {
    "silent": True,
    "quiet": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "label_disable": True,
    "init_timeout": SERVER_WAIT_SECONDS,
    "finish_timeout_raises": True,
    # The command line, user and host of the machine, and a cloud metadata probe over the network.
    "x_disable_meta": True,
    "x_save_requirements": False,
    "x_stats_sampling_interval": 30.0,
}


class WandbRun(Callback):
    """A Weights & Biases run that gets every record; its step counts the steps attempted, including undone ones.

    Construction waits at most `START_LIMIT_SECONDS`, and `on_end` at most `UPLOAD_WAIT_SECONDS` (with a checkpoint to
    upload `CHECKPOINT_WAIT_SECONDS`) + `CLOSE_SECONDS` + `KILLED_LIMIT_SECONDS`; records never wait. No error of wandb,
    its service or its server is raised here: `warn` gets it in one line, and tracking is off from then on. An online
    run whose server does not answer becomes an offline one. A service that dies is restarted once, and gets this
    process's records again: a signal that ends a run may go to all its processes, including the service.

    Args:
        mode: "auto": as WANDB_MODE says, else online if a W&B login is found on this machine, else offline.
        project: The W&B project; None: WANDB_PROJECT.
        run_name: The name shown for the run; None: WANDB_NAME, or one that W&B chooses.
        output_dir: W&B's files go to its `wandb`, or to that of WANDB_DIR.
        config: Recorded as the run's config.
        run_id: The W&B id of the run to continue, unless WANDB_RUN_ID names one; None starts a new one.
        warn: Called with one line of text, possibly on that thread.
        best: Returns the checkpoint to upload; called at the end. None: no upload.
    """

    def __init__(
        self,
        *,
        mode: WandbMode,
        project: str | None,
        run_name: str | None,
        output_dir: Path,
        config: Mapping[str, object],
        run_id: str | None,
        warn: Callable[[str], None],
        best: Callable[[], Checkpoint | None] | None = None,
    ) -> None:
        self.run_id = run_id
        """The W&B id to resume this run with; the id given at construction if tracking is off."""
        self._warn, self._best, self._alerts = warn, best, Alerts()
        self._upload_seconds = UPLOAD_WAIT_SECONDS if best is None else CHECKPOINT_WAIT_SECONDS
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._sent: collections.deque[_Item] = collections.deque(maxlen=QUEUE_LIMIT)
        self._failed = False
        self._restarted = False
        self._thread: threading.Thread | None = None
        self._run: Any = None  # stays None if WANDB_MODE is "disabled"
        self._items: Items
        if mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in _YES):
            return
        # Reporting wandb's own crashes to its makers is not part of tracking a run, unless the user has set this.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except Exception as error:  # a wandb that does not fit the installed protobuf raises anything here
            warn(f"wandb cannot be imported, so this run is not tracked ({one_line(error)}): pip install wandb")
            return
        self._folder = Path(os.environ.get("WANDB_DIR") or output_dir)
        self._init_arguments: dict[str, object]
        self._init_arguments = {"project": project, "name": run_name, "dir": str(self._folder), "config": {**config}}
        if run_id is not None and not os.environ.get("WANDB_RUN_ID"):
            self._init_arguments["id"] = run_id
            if not os.environ.get("WANDB_RESUME"):
                self._init_arguments["resume"] = "allow"
        started = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(mode, started), name="wandb", daemon=True)
        self._thread.start()
        if not started.wait(START_LIMIT_SECONDS):
            self._fail(f"wandb did not start within {START_LIMIT_SECONDS:.0f} s")
            self._kill_service()

    def on_start(self, state: TrainState) -> None:
        """Alert only about what happens from here on."""
        self._alerts.start(state)

    def on_train(self, record: Record) -> None:
        """Queue the record, without what a skipped step does not have."""
        self.on_eval({name: value for name, value in record.items() if value is not None})

    def on_eval(self, record: Record) -> None:
        """Queue the record; the records of one step become one W&B row."""
        self._put(record)

    def on_samples(self, state: TrainState, samples: Sequence[Sample]) -> None:
        """Queue the stories."""
        self._put(SampleRows(state.attempts, state.step, samples))

    def _put(self, item: _Item) -> None:
        if self._queue.qsize() >= QUEUE_LIMIT:
            self._fail(f"wandb has {QUEUE_LIMIT} records waiting")
        if self._thread is not None and not self._failed:
            self._queue.put(item)

    def on_end(self, exit_code: int) -> None:
        """Write what is queued, mark the run as ended (0: finished, else failed), and stop wandb's service."""
        if self._thread is None:
            return
        if self._best is not None and not self._failed and (checkpoint := self._best()) is not None:
            size = sum(entry.bytes for _, entry in checkpoint.files(WEIGHTS))
            self._warn(f"giving {checkpoint.folder} to wandb, {decimal(size)} without the optimizer's part")
            self._queue.put(checkpoint)
        self._queue.put(exit_code)
        limit = self._upload_seconds + CLOSE_SECONDS
        self._thread.join(limit)
        if self._thread.is_alive():
            self._fail(f"wandb did not finish within {limit:.0f} s")
            # wandb waits for its service once more when Python exits, and would wait there forever.
            self._kill_service()
            self._thread.join(KILLED_LIMIT_SECONDS)

    def _fail(self, reason: str) -> None:
        # Only the first failure is reported: the later ones follow from it.
        if not self._failed:
            self._failed = True
            self._warn(f"{reason}; wandb tracks this run no longer (metrics.jsonl goes on)")

    def _kill_service(self) -> None:
        """Kill a service process that hangs; what it wrote to disk so far stays."""
        self._restarted = True  # and start no other
        for service in _service_pids():
            os.kill(service, signal.SIGKILL)

    # From here on: methods that run on the thread.

    def _work(self, mode: WandbMode, started: threading.Event) -> None:
        # wandb's errors have no common base class: besides wandb.Error and OSError its client raises
        # MailboxClosedError, HandleAbandonedError, ServerResponseError (all plain Exceptions) and
        # pydantic's ValidationError, and none of them may end a training run.
        for part in (partial(self._track, mode, started), self._stop_service):
            try:
                part()
            except Exception as error:
                self._fail(f"wandb failed: {one_line(error)}")
        started.set()

    def _track(self, mode: WandbMode, started: threading.Event) -> None:
        self._start(mode)
        started.set()
        item: _Item = {}
        while not isinstance(item, int):
            item = self._queue.get()
            self._take(item)

    def _start(self, mode: WandbMode) -> None:
        str(self._folder.absolute()).encode()  # if a path is not UTF-8, an error here instead of a traceback of wandb
        # Passed here too, because some of wandb's messages use the global settings, not the run's.
        chosen = mode != "auto" or os.environ.get("WANDB_MODE")
        settings = self._settings() if mode == "auto" else self._settings(mode=mode)
        effective, reason = self._wandb.setup(settings=settings).settings.mode, None
        if effective == "online":
            try:
                if self._wandb.login(prompt=False, verify=False):
                    self._init("online")
                    return
                if chosen:
                    reason = "no login: run `wandb login` or set WANDB_API_KEY"
            except Exception as error:  # see _work
                reason = one_line(error)
                # A run id whose online start failed stays "in use" until the service is gone.
                self._stop_service()
            effective = "offline"
        if effective != "disabled":
            self._init("offline")
        if reason is not None:
            self._warn(
                f"wandb: no online run ({reason}); this run is recorded offline under "
                f"{self._folder / 'wandb'}, `wandb sync` uploads it"
            )

    def _init(self, mode: str) -> None:
        self._run = self._wandb.init(**self._init_arguments, mode=mode, settings=self._settings())
        self._mode, self.run_id, self._items = mode, str(self._run.id), Items(self._wandb, self._run)

    def _take(self, item: _Item) -> None:
        """Log a record, or finish with an exit code."""
        try:
            self._send(item)
        except Exception:  # see _work
            if self._restarted or not self._service_has_died():
                raise
            self._restarted = True
            with contextlib.suppress(Exception):  # there is nothing left to stop
                self._stop_service()
            self._init_arguments |= {"id": self.run_id, "resume": "allow"}
            self._init(self._mode)
            for earlier in (*self._sent, item):  # what it had not yet written is lost
                self._send(earlier)
        self._sent.append(item)

    def _send(self, item: _Item) -> None:
        if self._run is None:
            return
        if isinstance(item, int):
            self._items.alert(end_of_run(item))
            self._run.finish(exit_code=item)
        elif isinstance(item, SampleRows):
            self._items.samples(item)
        elif isinstance(item, Checkpoint):
            self._items.checkpoint(item)
        else:
            self._items.record(item)
            for alert in self._alerts.of(item):
                self._items.alert(alert)

    def _service_has_died(self) -> bool:
        time.sleep(1)  # its connection is lost a moment before
        return not _service_pids()

    def _stop_service(self) -> None:
        """Leave nothing for wandb to wait for when Python exits."""
        try:
            self._wandb.teardown()
        except SystemExit as error:  # how wandb passes on the exit code of its service
            raise RuntimeError(f"its service ended with exit code {error.code}") from error

    def _settings(self, **more: object) -> Any:
        # Settings come and go between wandb versions, and an unknown one would end the tracking.
        known = self._wandb.Settings.model_fields
        settings = {**SETTINGS, "finish_timeout": self._upload_seconds, **more}
        return self._wandb.Settings(**{name: value for name, value in settings.items() if name in known})


def _service_pids() -> list[int]:
    """PIDs of wandb's live service processes, which are children of this process."""
    children = psutil.Process().children()
    return [child.pid for child in children if Path("".join(command_line(child)[:1])).name == _SERVICE]
