"""Datasets of the hub, played by a local server; nothing leaves the machine.

Each is read in its own process because the libraries read HF_ENDPOINT on import.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_hub import PROCESS_SECONDS, Hub, served
from tests.support.small_dataset import COMMIT, HUB_NAME, OTHER_COMMIT, TINY_STORIES, TRAIN, write_dataset

datasets = pytest.importorskip("datasets", reason="needs pip install datasets")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("empty_datasets_cache")

REPO = Path(__file__).parents[3]
UNREACHABLE_SECONDS = 15

READ = """
import json, os, sys
from storyteller_ds.data.sources.huggingface import HuggingFaceSource
from storyteller_ds.errors import DataError
source = HuggingFaceSource(**json.loads(sys.argv[1]))
try:
    print(json.dumps(source.has_split(sys.argv[2]) if sys.argv[2:] else list(source.documents())))
    code = 0
except DataError as error:
    print(error)
    code = error.exit_code
sys.stdout.flush()
os._exit(code)  # as the command does: threads of datasets that are streamed may abort Python's finalization
"""


def read_in_process(
    home: Path, endpoint: str, env: dict[str, str] | None = None, asked: tuple[str, ...] = (), **fields: Any
) -> tuple[int, str]:
    """Return the exit code and output of the process; a successful or refused run leaves stderr empty.

    The process prints the documents or, for a split in `asked`, whether the dataset has it.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV") if name in os.environ}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HOME": str(home), "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(fields), *asked],
        env=kept | settings | (env or {}),
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.returncode, done.stdout.strip()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with served(write_dataset(tmp_path / "remote")) as hub:
        yield hub


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_documents(tmp_path: Path, hub: Hub, streaming: bool) -> None:
    fields = {"dataset": HUB_NAME, "split": "train", "revision": COMMIT, "streaming": streaming}
    assert read_in_process(tmp_path / "home", hub.endpoint, **fields) == (0, json.dumps(TRAIN))


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_cached_dataset_needs_no_hub_and_another_commit_is_not_taken_for_it(tmp_path: Path, hub: Hub) -> None:
    home, fields = tmp_path / "home", {"dataset": HUB_NAME, "split": "train"}
    assert read_in_process(home, hub.endpoint, revision=COMMIT, **fields) == (0, json.dumps(TRAIN))
    questions = len(hub.asked)
    assert questions > 0
    for streaming in (False, True):
        again = read_in_process(home, hub.endpoint, revision=COMMIT, streaming=streaming, **fields)
        assert again == (0, json.dumps(TRAIN))
    assert len(hub.asked) == questions
    for env in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_DATASETS_OFFLINE": "1"}):
        cached = read_in_process(home, closed_port(), env, revision=COMMIT, **fields)
        assert cached == (0, json.dumps(TRAIN))
        code, message = read_in_process(home, closed_port(), env, revision=OTHER_COMMIT, **fields)
        assert code == 2
        assert "cannot be reached" in message


def test_an_interrupted_download_is_continued(tmp_path: Path, hub: Hub) -> None:
    home, fields = tmp_path / "home", {"dataset": HUB_NAME, "split": "train", "revision": COMMIT}
    assert read_in_process(home, hub.endpoint, **fields) == (0, json.dumps(TRAIN))
    folder = home / ".cache" / "storyteller_ds" / "hub" / HUB_NAME / COMMIT
    missing = "data/train-00001-of-00002.parquet"
    (folder / missing).unlink()
    folder.rename(folder.with_name(f"{COMMIT}.work-0123"))
    hub.asked.clear()
    assert read_in_process(home, hub.endpoint, **fields) == (0, json.dumps(TRAIN))
    assert {path.partition(f"{COMMIT}/")[2] for path in hub.asked if path.endswith(".parquet")} == {missing}
    assert [path.name for path in folder.parent.iterdir()] == [COMMIT]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_without_split_or_field(tmp_path: Path, hub: Hub, streaming: bool) -> None:
    fields = {"dataset": HUB_NAME, "revision": COMMIT, "streaming": streaming}
    code, message = read_in_process(tmp_path / "home", hub.endpoint, split="test", **fields)
    assert (code, message) == (2, f"{HUB_NAME} has no split 'test'; it has: train, validation")
    code, message = read_in_process(tmp_path / "home", hub.endpoint, split="train", text_field="x", **fields)
    assert code == 2
    assert message.endswith("one of: text, pages")


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_is_asked_which_splits_there_are(tmp_path: Path, hub: Hub, streaming: bool) -> None:
    home, fields = tmp_path / "home", {"dataset": HUB_NAME, "split": "train", "revision": COMMIT}
    for split, answer in (("validation", "true"), ("bedtime", "false")):
        assert read_in_process(home, hub.endpoint, asked=(split,), streaming=streaming, **fields) == (0, answer)
    # If the hub cannot be asked, the split is assumed to exist, so that a corpus prepared from it is still found.
    offline = {"HF_HUB_OFFLINE": "1"}
    assert read_in_process(home, closed_port(), offline, ("bedtime",), **fields) == (0, "true")
    assert read_in_process(home, hub.endpoint, **fields)[0] == 0
    assert read_in_process(home, closed_port(), offline, ("bedtime",), **fields) == (0, "false")
    pinned = {"dataset": TINY_STORIES, "split": "train"}
    questions = len(hub.asked)
    assert read_in_process(tmp_path / "other", hub.endpoint, asked=("validation",), **pinned) == (0, "true")
    assert len(hub.asked) == questions


def test_hub_without_the_dataset_or_the_commit(tmp_path: Path, hub: Hub) -> None:
    fields = {"split": "train", "revision": OTHER_COMMIT}
    code, message = read_in_process(tmp_path / "home", hub.endpoint, dataset="no/body", **fields)
    assert (code, "no/body does not exist on the hub" in message) == (2, True)
    code, message = read_in_process(tmp_path / "home", hub.endpoint, dataset=HUB_NAME, **fields)
    assert (code, f"{HUB_NAME} has no commit {OTHER_COMMIT}" in message) == (2, True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["closed", "silent", "offline"])
def test_unreachable_hub_is_said_in_time(tmp_path: Path, silent_endpoint: str, kind: str, streaming: bool) -> None:
    endpoint = silent_endpoint if kind == "silent" else closed_port()
    env = {"HF_HUB_OFFLINE": "1"} if kind == "offline" else {}
    fields = {"dataset": TINY_STORIES, "split": "train", "streaming": streaming}
    start = time.monotonic()
    code, message = read_in_process(tmp_path / "home", endpoint, env, **fields)
    assert time.monotonic() - start < UNREACHABLE_SECONDS
    assert (code, "cannot be reached for roneneldan/TinyStories" in message) == (2, True)
    assert "data.source=builtin or data.source=PATH/TO/stories.txt" in message
