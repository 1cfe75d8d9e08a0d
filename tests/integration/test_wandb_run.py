"""Weights & Biases tracking; every case that starts wandb's service runs in its own process."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from storyteller_ds.training.callbacks import wandb_run
from storyteller_ds.training.callbacks.wandb_run import WandbRun
from tests.support.distributed import SMALLEST_RUN, TRAIN
from tests.support.wandb_offline import read_config, read_history, read_identity
from tests.support.warm_machine import WarmMachine

RECORDS: list[dict[str, object]] = [
    {"step": 1, "train_loss": 0.1 + 0.2, "lr": 3e-4, "tokens": 12345678901, "loads": [0.1, 1 / 3]},
    {"step": 1, "val_loss": 2.718281828459045, "note": "held out"},
    {"step": 2, "train_loss": 1e-300, "lr": 5e-324, "tokens": 2**60, "loads": [[0.25, 0.5], [1e22, -0.0]]},
    {"step": 7, "train_loss": 1.7976931348623157e308, "ok": True, "none": None},
    {"step": 7, "val_loss": 1.0000000000000002},
]
CONFIG = {"model": {"layers": 2, "experts": [4, 8]}, "lr": 3e-4, "name": "tiny"}

LIMITS = (wandb_run.UPLOAD_WAIT_SECONDS, wandb_run.CLOSE_SECONDS, wandb_run.KILLED_LIMIT_SECONDS)
"""Limits on the time that closing may take (s)."""

PROGRAM = """
import json, os, sys, time
from pathlib import Path
from storyteller_ds.training.callbacks import wandb_run
from storyteller_ds.training.callbacks.wandb_run import WandbRun
from tests.support.distributed import wait_until

def service():
    (pid,) = wandb_run._service_pids()
    return pid

def end_service(number):
    ended = service()
    os.kill(ended, number)
    assert wait_until(lambda: ended not in wandb_run._service_pids(), 20)

arguments = json.loads(sys.argv[1])
warnings = []
before = time.monotonic()
tracker = WandbRun(
    mode=arguments["mode"], project=arguments["project"], run_name=arguments["run_name"],
    output_dir=Path(arguments["output_dir"]), config=arguments["config"], run_id=arguments["run_id"],
    warn=warnings.append,
)
constructed = time.monotonic()
{during}
for record in arguments["records"]:
    tracker.on_eval(record)
logged = time.monotonic()
tracker.on_end(arguments["exit_code"])
report = {{
    "warnings": warnings, "run_id": tracker.run_id, "imported": "wandb" in sys.modules,
    "construct": constructed - before, "log": logged - constructed, "close": time.monotonic() - logged,
}}
Path(arguments["report"]).write_text(json.dumps(report))
"""


@dataclass(frozen=True)
class Report:
    """The report of the tracking process, and its console output."""

    warnings: list[str]
    run_id: str | None
    imported: bool
    construct: float
    log: float
    close: float
    console: str


def track(
    folder: Path,
    mode: str,
    *,
    run_id: str | None = None,
    during: str = "",
    env: dict[str, str] | None = None,
    project: str | None = "stories",
    run_name: str | None = "tiny",
    exit_code: int = 0,
    records: Sequence[Mapping[str, object]] = RECORDS,
) -> Report:
    """Run a tracker in a new process without a login."""
    if mode != "disabled":
        pytest.importorskip("wandb")
    home = folder / "home"
    home.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_CONFIG_DIR": str(home)}
    # Even with the wrong mode, nothing must leave this machine.
    clean |= {"WANDB_BASE_URL": "http://127.0.0.1:9"} | (env or {})
    arguments = {
        "mode": mode,
        "output_dir": str(folder),
        "config": CONFIG,
        "run_id": run_id,
        "project": project,
        "run_name": run_name,
        "exit_code": exit_code,
        "records": records,
        "report": str(folder / "report.json"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(during=textwrap.dedent(during)), json.dumps(arguments)],
        cwd=Path(__file__).parents[2],
        env=clean,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=45,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return Report(**json.loads((folder / "report.json").read_text()), console=done.stdout)


def offline_run(folder: Path) -> Path:
    (run,) = (folder / "wandb").glob("offline-run-*")
    return run


def metrics_by_step(run: Path) -> dict[object, dict[str, object]]:
    rows = read_history(run)
    own = {"_step", "_timestamp", "_runtime"}
    return {row["_step"]: {name: row[name] for name in row if name not in own} for row in rows}


def merged_records() -> dict[object, dict[str, object]]:
    merged: dict[object, dict[str, object]] = {}
    for record in RECORDS:
        row = {name: value for name, value in record.items() if name != "step"}
        merged.setdefault(record["step"], {}).update(row)
    return merged


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("offline")
    report = track(folder, "auto", run_id="story123")
    return folder, report


def test_auto_without_a_login_is_silent_and_offline(recorded: tuple[Path, Report]) -> None:
    folder, report = recorded
    assert report.run_id == "story123"
    assert offline_run(folder).name.endswith("-story123")
    assert report.console == ""
    assert report.warnings == []


def test_records_come_back_exactly_and_those_of_one_step_share_a_row(recorded: tuple[Path, Report]) -> None:
    folder, _ = recorded
    assert metrics_by_step(offline_run(folder)) == merged_records()
    assert read_config(offline_run(folder)) == CONFIG


def test_the_environment_is_not_recorded(tmp_path: Path) -> None:
    secret = "sesame-street-secret"
    track(tmp_path, "offline", env={"STORY_TOKEN": secret})
    written = [path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert written
    assert not any(secret.encode() in content for content in written)


def test_non_finite_values_survive(tmp_path: Path) -> None:
    during = "tracker.on_eval({'step': 0, 'bad': float('nan'), 'list': [float('inf'), 1.5]})"
    track(tmp_path, "offline", during=during)
    row = metrics_by_step(offline_run(tmp_path))[0]
    assert isinstance(row["bad"], float)
    assert math.isnan(row["bad"])
    assert row["list"] == [math.inf, 1.5]


def test_the_step_of_a_row_never_goes_back(tmp_path: Path) -> None:
    during = """
        for step, loss, undone in ((1, 3.0, 0), (2, None, 0), (3, 1.0, 0), (2, 2.5, 2), (3, 2.4, 2)):
            tracker.on_train({"step": step, "train_loss": loss, "undone_steps": undone})
        tracker.on_eval({"step": 3, "val_loss": 2.6, "undone_steps": 2})
    """
    track(tmp_path, "offline", during=during, records=[])
    assert metrics_by_step(offline_run(tmp_path)) == {
        1: {"train_loss": 3.0, "undone_steps": 0},
        2: {"undone_steps": 0},  # a skipped step has no loss
        3: {"train_loss": 1.0, "undone_steps": 0},
        4: {"train_loss": 2.5, "undone_steps": 2},
        5: {"train_loss": 2.4, "val_loss": 2.6, "undone_steps": 2},
    }


def test_an_unreachable_server_means_a_warned_offline_run(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound but not listening, so connections are certainly refused
        closed.bind(("127.0.0.1", 0))
        env = {"WANDB_BASE_URL": f"http://127.0.0.1:{closed.getsockname()[1]}", "WANDB_API_KEY": "a" * 40}
        before = time.monotonic()
        report = track(tmp_path, "online", run_id="story123", env=env)
    assert time.monotonic() - before < 45
    (warning,) = report.warnings
    assert "offline" in warning
    assert "\n" not in warning
    assert "aaaa" not in warning
    assert report.console == ""
    assert report.run_id == "story123"
    assert metrics_by_step(offline_run(tmp_path)) == merged_records()


def test_online_without_a_login_asks_nobody(tmp_path: Path) -> None:
    report = track(tmp_path, "online")
    assert "wandb login" in report.warnings[0]
    assert report.console == ""
    assert metrics_by_step(offline_run(tmp_path)) == merged_records()


def test_auto_with_a_netrc_entry_tries_the_server(tmp_path: Path) -> None:
    netrc = tmp_path / "login"
    # A key that is too short is found like any other, and refused without waiting for the server.
    netrc.write_text("machine 127.0.0.1:9\n  login user\n  password short\n")
    netrc.chmod(0o600)
    report = track(tmp_path, "auto", env={"NETRC": str(netrc)})
    assert "no online run" in report.warnings[0]
    assert offline_run(tmp_path)


def test_a_hung_service_delays_neither_the_records_nor_the_exit_for_long(tmp_path: Path) -> None:
    during = "import os, signal; os.kill(service(), signal.SIGSTOP)"
    report = track(tmp_path, "offline", during=during)
    assert report.log < 1.0
    assert report.close < sum(LIMITS) + 1
    assert len(report.warnings) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_service_that_is_ended_with_the_run_is_started_once_more(number: int, tmp_path: Path) -> None:
    """DeepSpeed's launcher ends a rank's descendants, and Slurm all processes of a job, while the rank still saves."""
    during = f"""
        tracker.on_eval({{"step": 0, "train_loss": 1.0}})
        end_service({int(number)})
    """
    report = track(tmp_path, "offline", run_id="story123", during=during, exit_code=75)
    assert report.warnings == []
    assert report.console == ""
    run = max((tmp_path / "wandb").glob("offline-run-*"))
    assert metrics_by_step(run) == {0: {"train_loss": 1.0}, **merged_records()}
    assert read_config(run) == CONFIG
    identity = read_identity(run)
    assert (identity["id"], identity["exit_code"]) == ("story123", 75)


def test_a_service_that_dies_again_ends_the_tracking_with_one_warning(tmp_path: Path) -> None:
    during = """
        for step in range(2):
            end_service(9)
            tracker.on_eval({"step": 0, "train_loss": 1.0})
            wait_until(lambda: wandb_run._service_pids() or tracker._failed, 20)
    """
    report = track(tmp_path, "offline", during=during)
    assert len(report.warnings) == 1
    assert "tracks this run no longer" in report.warnings[0]


VARIABLES = {
    "WANDB_PROJECT": "of-env",
    "WANDB_NAME": "named",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_GROUP": "group",
    "WANDB_JOB_TYPE": "job",
    "WANDB_TAGS": "a,b",
    "WANDB_NOTES": "some notes",
    "WANDB_RUN_ID": "id-of-env",
    "WANDB_RESUME": "allow",
}


def test_variables_hold_where_nothing_else_was_chosen(tmp_path: Path) -> None:
    env = {**VARIABLES, "WANDB_DIR": str(tmp_path / "elsewhere")}
    report = track(tmp_path, "auto", run_id="story123", project=None, run_name=None, env=env)
    assert report.warnings == []
    assert report.run_id == "id-of-env"
    assert not (tmp_path / "wandb").exists()
    assert read_identity(offline_run(tmp_path / "elsewhere")) == {
        "id": "id-of-env",
        "project": "of-env",
        "name": "named",
        "entity": "team",
        "group": "group",
        "job_type": "job",
        "tags": ["a", "b"],
        "notes": "some notes",
        "exit_code": 0,
    }


def test_a_folder_whose_name_is_not_utf_8_is_told(tmp_path: Path) -> None:
    report = track(tmp_path, "auto", env={"WANDB_DIR": os.fsdecode(bytes(tmp_path) + b"/caf\xe9")})
    (warning,) = report.warnings
    assert warning.startswith("wandb failed: UnicodeEncodeError")
    assert "\n" not in warning
    assert report.console == ""


def test_a_choice_of_the_run_config_beats_the_variables(tmp_path: Path) -> None:
    report = track(tmp_path, "offline", env={**VARIABLES, "WANDB_MODE": "disabled", "WANDB_DISABLED": "true"})
    assert report.warnings == []
    identity = read_identity(offline_run(tmp_path))
    assert (identity["project"], identity["name"], identity["group"]) == ("stories", "tiny", "group")


@pytest.mark.parametrize("variable", [{"WANDB_MODE": "disabled"}, {"WANDB_DISABLED": "true"}])
def test_variables_can_switch_tracking_off(variable: dict[str, str], tmp_path: Path) -> None:
    report = track(tmp_path, "auto", env=variable)
    assert (report.warnings, report.console) == ([], "")
    assert not list(tmp_path.glob("wandb/*run-*"))


def test_the_variable_beats_a_login(tmp_path: Path) -> None:
    report = track(tmp_path, "auto", env={"WANDB_MODE": "offline", "WANDB_API_KEY": "a" * 40})
    assert report.warnings == []
    assert offline_run(tmp_path)


def test_a_variable_that_wants_a_login_is_told_that_there_is_none(tmp_path: Path) -> None:
    report = track(tmp_path, "auto", env={"WANDB_MODE": "online"})
    (warning,) = report.warnings
    assert "wandb login" in warning
    assert offline_run(tmp_path)


def test_a_default_of_the_run_config_is_no_choice(machine: WarmMachine, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    tiny = [argument for argument in SMALLEST_RUN if not argument.startswith("tracking.")]
    for chosen, name in ((), "of-env"), (("tracking.project=typed",), "typed"):
        folder = tmp_path / name
        command = [str(TRAIN), "--output_dir", str(folder), *tiny, "data.builtin_stories=20", *chosen]
        env = {"WANDB_PROJECT": "of-env", "WANDB_MODE": "offline", "WANDB_CONFIG_DIR": str(tmp_path)}
        run = machine.start(1, command, tmp_path / f"{name}.logs", env)
        assert run.wait(200) == 0, run.stderr
        assert read_identity(offline_run(folder))["project"] == name


def test_disabled_imports_no_wandb_and_keeps_the_id(tmp_path: Path) -> None:
    report = track(tmp_path, "disabled", run_id="story123")
    assert report.imported is False
    assert report.warnings == []
    assert report.run_id == "story123"
    assert report.console == ""
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("mode", ["auto", "online", "offline"])
def test_a_missing_package_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: wandb_run.WandbMode
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # so that monkeypatch restores it
    warnings: list[str] = []
    tracker = WandbRun(
        mode=mode, project="p", run_name=None, output_dir=tmp_path, config={}, run_id=None, warn=warnings.append
    )
    tracker.on_eval(RECORDS[0])
    tracker.on_end(0)
    assert len(warnings) == 1
    assert "pip install wandb" in warnings[0]
    assert tracker.run_id is None
