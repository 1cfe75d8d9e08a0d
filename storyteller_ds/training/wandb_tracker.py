"""Sends a run's metrics to Weights & Biases, and never gets in the way of the run.

Everything that touches wandb happens on one daemon thread: its calls wait on a service process, and a
service that hangs must not hang the training loop. What goes wrong there is kept and reported from the
training thread, so that `warn` needs no locks.

wandb's variables (WANDB_MODE, WANDB_PROJECT, WANDB_NAME, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS, WANDB_DIR,
WANDB_RUN_ID, WANDB_RESUME and the rest) are followed where the run config leaves it to its defaults: wandb reads them
itself, wherever it is given no argument.
"""

import collections
import contextlib
import copy
import importlib
import netrc
import os
import queue
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit

from storyteller_ds.redaction import redacted
from storyteller_ds.user_paths import is_utf8

WandbMode = Literal["auto", "online", "offline", "disabled"]
_Item = tuple[int, dict[str, object]] | int  # a record as (step, metrics), or at last the exit code

SERVER_WAIT_SECONDS = 10.0
# Service start, the wait for the server, and the second start without it.
START_LIMIT_SECONDS = 25.0
UPLOAD_WAIT_SECONDS = 10.0
CLOSE_LIMIT_SECONDS = 14.0
# After the service was killed the thread has nothing left to wait for but its own clean-up.
KILLED_LIMIT_SECONDS = 3.0
# A healthy service takes a record in milliseconds: a backlog of this size is a hung one.
QUEUE_LIMIT = 10_000
_YES = ("1", "true", "yes", "on")
INSTALL_HINT = 'wandb is not installed, so this run is not tracked: pip install "storyteller_ds[wandb]"'


class WandbTracker:
    """A Weights & Biases run that takes the records of metrics.jsonl as they are.

    Construction waits at most `START_LIMIT_SECONDS` and `close` at most `CLOSE_LIMIT_SECONDS` +
    `KILLED_LIMIT_SECONDS`; `log` never waits. Nothing that wandb, its service or its server do raises
    here: it is told to `warn` in one line, and tracking is off from then on. An online run whose server
    does not answer becomes an offline one. A service that dies is started once more, and gets this process's
    records again: whoever ends a run may signal all its processes, that one too.

    Args:
        mode: "auto" is as WANDB_MODE says, else online if a W&B login is found on this machine, else offline.
        project: The W&B project; None: WANDB_PROJECT.
        run_name: The name shown for the run; None: WANDB_NAME, or one that W&B chooses.
        output_dir: W&B's files go to its `wandb`, or to that of WANDB_DIR.
        config: Recorded as the run's config.
        run_id: The W&B id of the run to go on with, unless WANDB_RUN_ID names one; None starts a new one.
        warn: Called on the constructing or logging thread with one line of text.
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
    ) -> None:
        self._warn = warn
        self._run_id = run_id
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._failure: str | None = None
        self._failure_reported = False
        self._accepting = False
        self._thread: threading.Thread | None = None
        self._session: _Session | None = None
        disabled = mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in _YES)
        wandb = None if disabled else _import_wandb(warn)
        if wandb is None:
            return
        folder = Path(os.environ.get("WANDB_DIR") or output_dir)
        if not is_utf8(place := folder.absolute()):
            warn(f"wandb takes no path that is not UTF-8, as {place} is, so this run is not tracked; set WANDB_DIR")
            return
        arguments: dict[str, object] = {"project": project, "name": run_name, "dir": str(folder), "config": {**config}}
        if run_id is not None and not os.environ.get("WANDB_RUN_ID"):
            arguments["id"] = run_id
            if not os.environ.get("WANDB_RESUME"):
                arguments["resume"] = "allow"
        self._session = _Session(wandb, arguments)
        started = threading.Event()
        self._accepting = True
        self._thread = threading.Thread(
            target=self._work, args=(self._session, mode, started), name="wandb-tracker", daemon=True
        )
        self._thread.start()
        if not started.wait(START_LIMIT_SECONDS):
            self._failure = f"wandb did not start within {START_LIMIT_SECONDS:.0f} s"
            self._session.kill_service()
        else:
            self._tell_where(self._session, folder)
        self._run_id = self._session.run_id or run_id
        self._report_failure()

    @property
    def run_id(self) -> str | None:
        """The W&B id to resume this run with; the id given at construction where tracking is off."""
        return self._run_id

    def log(self, record: Mapping[str, object]) -> None:
        """Queue one record of metrics.jsonl; records of one step become one W&B row.

        Args:
            record: "step" and the metrics, named in W&B exactly as here.

        Raises:
            KeyError: If the record has no "step".
            TypeError: If "step" is not an integer.
        """
        step = record["step"]
        if not isinstance(step, int):
            raise TypeError(f"a record's step is an integer, not {step!r}")
        if self._queue.qsize() >= QUEUE_LIMIT:
            self._failure = self._failure or f"wandb has {QUEUE_LIMIT} records waiting"
        self._report_failure()
        if not self._accepting:
            return
        # The thread reads the record later, when the caller may have gone on to change its lists.
        metrics = copy.deepcopy({name: value for name, value in record.items() if name != "step"})
        self._queue.put((step, metrics))

    def close(self, exit_code: int) -> None:
        """Write what is queued, mark the run as ended and stop wandb's service. A second call does nothing.

        Args:
            exit_code: The run's exit code: W&B shows 0 as finished and any other as failed.
        """
        self._accepting = False
        if self._thread is None or self._session is None:
            return
        self._queue.put(exit_code)
        self._thread.join(CLOSE_LIMIT_SECONDS)
        if self._thread.is_alive():
            self._failure = self._failure or f"wandb did not finish within {CLOSE_LIMIT_SECONDS:.0f} s"
            # wandb waits for its service once more when Python exits, and would wait there for ever.
            self._session.kill_service()
            self._thread.join(KILLED_LIMIT_SECONDS)
        self._thread = None
        self._report_failure()

    def _tell_where(self, session: "_Session", folder: Path) -> None:
        """Say what is not as it was asked for."""
        taken, temporary = session.folder or folder, Path(tempfile.gettempdir()).resolve()
        if taken.resolve() == temporary != folder.resolve():  # where wandb goes if it must
            self._warn(f"wandb: {folder} cannot be written; this run is recorded under {taken / 'wandb'}")
        if session.fallback_reason is not None:
            self._warn(
                f"wandb: no online run ({session.fallback_reason}); this run is recorded offline under "
                f"{taken / 'wandb'}, `wandb sync` uploads it"
            )

    def _report_failure(self) -> None:
        # Only the first failure is news: the later ones follow from it.
        if self._failure is not None and not self._failure_reported:
            self._accepting = False
            self._failure_reported = True
            self._warn(f"{self._failure}; wandb tracks this run no longer (metrics.jsonl goes on)")

    def _work(self, session: "_Session", mode: WandbMode, started: threading.Event) -> None:
        try:
            session.start(mode)
            started.set()
            item: _Item = (0, {})
            while not isinstance(item, int):
                item = self._queue.get()
                session.take(item)
        # wandb's errors have no common base class: besides wandb.Error and OSError its client raises
        # MailboxClosedError, HandleAbandonedError, ServerResponseError (all plain Exceptions) and
        # pydantic's ValidationError, and none of them may end a training run.
        except Exception as error:
            self._failure = self._failure or f"wandb failed: {_one_line(error)}"
        try:
            session.stop_service()
        except Exception as error:  # for the reason above
            self._failure = self._failure or f"wandb failed: {_one_line(error)}"
        started.set()


class _Session:
    """The calls into wandb. All but `kill_service` run on the tracker's thread."""

    def __init__(self, wandb: ModuleType, init_arguments: dict[str, object]) -> None:
        self._wandb: Any = wandb
        self._init_arguments = init_arguments
        self._run: Any = None  # stays so None where WANDB_MODE is "disabled"
        self._service: subprocess.Popen[bytes] | None = None
        self._mode = "disabled"
        self._sent: collections.deque[_Item] = collections.deque(maxlen=QUEUE_LIMIT)
        self._restarted = False
        self.run_id: str | None = None
        self.folder: Path | None = None
        """In whose `wandb` the files are."""
        self.fallback_reason: str | None = None

    def start(self, mode: WandbMode) -> None:
        # Given here too, because some of wandb's messages ask the global settings and not the run's.
        settings = self._wandb.setup(settings=self._settings()).settings
        logged_in = self._logged_in(settings)
        if mode == "auto":
            # settings.mode is the user's choice, or else "online".
            chosen = os.environ.get("WANDB_MODE") or settings.mode != "online"
            mode = settings.mode if chosen or logged_in else "offline"
        if mode == "online" and not logged_in:
            mode = "offline"  # wandb would ask for the login on the terminal, and wait
            self.fallback_reason = "no login: run `wandb login` or set WANDB_API_KEY"
        if mode == "online":
            try:
                self._init("online")
                return
            except Exception as error:  # wandb's errors have no common base class, see WandbTracker._work
                self.fallback_reason = _one_line(error)
                # A run id whose online start failed stays "in use" until the service is gone.
                self.stop_service()
        if mode != "disabled":
            self._init("offline")

    def take(self, item: _Item) -> None:
        """Log a record, or finish with an exit code."""
        try:
            self._send(item)
        except Exception:  # wandb's errors have no common base class, see WandbTracker._work
            if self._restarted or not self._has_died():
                raise
            self._restarted = True
            with contextlib.suppress(Exception):  # it is no longer there to be stopped
                self.stop_service()
            self._init_arguments |= {"id": self.run_id, "resume": "allow"}
            self._init(self._mode)
            for earlier in (*self._sent, item):  # what it had not yet written is lost
                self._send(earlier)
        self._sent.append(item)

    def _send(self, item: _Item) -> None:
        if self._run is not None and isinstance(item, int):
            self._run.finish(exit_code=item)
        elif self._run is not None and not isinstance(item, int):
            self._run.log(item[1], step=item[0])

    def _has_died(self) -> bool:
        if self._service is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._service.wait(1)  # its connection is lost a moment before
        return self._service.returncode is not None

    def stop_service(self) -> None:
        """Leave nothing for wandb to wait for when Python exits."""
        try:
            self._wandb.teardown()
        except SystemExit as error:  # how wandb passes on the exit code of its service
            raise RuntimeError(f"its service ended with exit code {error.code}") from error

    def kill_service(self) -> None:
        """End a service process that does not answer; what it wrote to disk so far stays."""
        self._restarted = True  # and start no other
        service = self._service or _service_process()
        if service is not None:
            service.kill()

    def _init(self, mode: str) -> None:
        self._run = self._wandb.init(**self._init_arguments, mode=mode, settings=self._settings())
        self._mode = mode
        self.run_id = str(self._run.id)
        self.folder = Path(self._run.dir).parents[2]
        self._service = _service_process()

    def _settings(self) -> Any:
        wanted: dict[str, object] = {
            "silent": True,
            "quiet": True,
            "console": "off",
            "disable_code": True,
            "disable_git": True,
            "save_code": False,
            "label_disable": True,
            "init_timeout": SERVER_WAIT_SECONDS,
            "finish_timeout": UPLOAD_WAIT_SECONDS,
            "finish_timeout_raises": True,
            # The command line, user and host of the machine, and a cloud metadata probe over the network.
            "x_disable_meta": True,
            "x_save_requirements": False,
            "x_stats_sampling_interval": 30.0,
        }
        # Settings come and go between wandb versions, and an unknown one would end the tracking.
        known = self._wandb.Settings.model_fields
        return self._wandb.Settings(**{name: value for name, value in wanted.items() if name in known})

    def _logged_in(self, settings: Any) -> bool:
        hosts = {urlsplit(str(settings.base_url)).netloc}
        if settings.base_url == self._wandb.Settings.model_fields["base_url"].default:
            hosts.add("api.wandb.ai")  # the public server's older name, whose logins are good for it still
        in_environment = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
        return bool(in_environment or settings.api_key) or _in_netrc(hosts)


def _import_wandb(warn: Callable[[str], None]) -> ModuleType | None:
    # Reports of wandb's own crashes to its makers are no part of tracking a run; whoever set this has chosen.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        wandb = None
    except Exception as error:  # a wandb that does not fit the installed protobuf raises anything here
        warn(f"wandb cannot be imported, so this run is not tracked: {_one_line(error)}")
        return None
    # Without the package, an earlier run's folder named wandb in the working directory imports all the same.
    if not hasattr(wandb, "init"):
        warn(INSTALL_HINT)
        return None
    return wandb


def _in_netrc(hosts: set[str]) -> bool:
    try:
        logins = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser())
    except (OSError, netrc.NetrcParseError):
        return False
    return any(logins.authenticators(host) for host in hosts)


def _service_process() -> "subprocess.Popen[bytes] | None":
    # wandb has no public way to reach its service; where a version keeps it elsewhere there is no kill.
    found: object = sys.modules.get("wandb.sdk.wandb_setup")
    for name in ("_singleton", "_connection", "_proc", "_process"):
        found = getattr(found, name, None)
    return found if isinstance(found, subprocess.Popen) else None


def _one_line(error: Exception) -> str:
    return textwrap.shorten(redacted(f"{type(error).__name__}: {error}"), 200)
