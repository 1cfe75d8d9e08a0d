"""`storyteller download` from a local server that plays the hub; nothing leaves the machine.

The command runs in its own process because huggingface_hub reads HF_ENDPOINT on import.
"""

import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from storyteller_ds.cli import download as command
from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.in_time import in_time
from storyteller_ds.data.known_datasets import KNOWN
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.data.sources.hub import PINNED_REVISIONS
from tests.support.distributed import Outcome, run_command
from tests.support.fake_hub import served
from tests.support.small_dataset import COMMIT, TRAIN, VALIDATION, write_dataset

pytest.importorskip("huggingface_hub")

ENTRY = """
import sys
from storyteller_ds.cli.start import superseded
sys.argv[0] = "bin/storyteller-download"
superseded()
"""
SECONDS, UNREACHABLE_SECONDS = 60, 15
BOOKS = KNOWN["bookcorpus"].repository


def download(home: Path, endpoint: str, *args: str, **env: str) -> Outcome:
    settings = {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", **env}
    return run_command([sys.executable, "-c", ENTRY, *args], SECONDS, settings)


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_dataset_becomes_a_folder_that_is_trained_on(tmp_path: Path) -> None:
    remote = write_dataset(tmp_path / "remote")
    (remote / "README.md").write_text("---\nlicense: mit\n---\nStories.")
    (remote / "script.py").write_text("raise SystemExit")
    out = tmp_path / "out"
    with served(remote, BOOKS) as hub:
        done = download(tmp_path, hub.endpoint, "--output_dir", str(out), "--dataset", "bookcorpus")
        assert done.exit_code == 0, done.stderr
        assert done.stdout == f"{out / 'bookcorpus'}\n"
        first, last = done.stderr.splitlines()
        assert first.startswith("bookcorpus: 4 file(s), ")
        assert "license mit" in first
        assert COMMIT in first
        assert f"data.source={out / 'bookcorpus'}" in last
        again = download(tmp_path, hub.endpoint, "--output-dir", str(out), "--dataset", "bookcorpus")
        assert (again.exit_code, "is in" in again.stderr) == (0, True)
        files = {path.relative_to(remote): path.read_bytes() for path in remote.rglob("*.parquet")}
        assert {path.relative_to(out / "bookcorpus") for path in (out / "bookcorpus").rglob("*") if path.is_file()} == {
            *files,
            Path("README.md"),
            Path("PROVENANCE.md"),
        }
        assert all((out / "bookcorpus" / name).read_bytes() == content for name, content in files.items())
        assert COMMIT in (out / "bookcorpus" / "PROVENANCE.md").read_text()
        (out / "bookcorpus" / next(iter(files))).write_bytes(b"other")
        other = download(tmp_path, hub.endpoint, "--output_dir", str(out), "--dataset", "bookcorpus")
        assert (other.exit_code, "move the folder away" in other.stderr) == (2, True)
    (out / "bookcorpus" / next(iter(files))).write_bytes(next(iter(files.values())))
    pytest.importorskip("datasets")
    train, held_out = choose_sources(DataConfig(source=str(out / "bookcorpus")))
    assert [list(train.documents()), list(held_out.documents())] == [TRAIN, VALIDATION]


def test_a_broken_download_goes_on_where_it_was(tmp_path: Path) -> None:
    known, remote, out = KNOWN["tinystories-gpt4"], tmp_path / "remote", tmp_path / "out"
    content = "".join(f"Story {i}.\n<|endoftext|>\n" for i in range(100_000)).encode()
    left = out / "tinystories-gpt4.work-0123"
    for folder in (remote, left):
        folder.mkdir(parents=True)
    for name in known.files:
        (remote / name).write_bytes(content)
    (left / known.files[0]).write_bytes(content)
    (left / f"{known.files[1]}.part").write_bytes(content[:1_000_000])
    args = ("--output_dir", str(out), "--dataset", "tinystories-gpt4")
    with served(remote, known.repository, PINNED_REVISIONS[known.repository]) as hub:
        done = download(tmp_path, hub.endpoint, *args)
        assert done.exit_code == 0, done.stderr
        assert [each.partition("-")[0] for each in hub.ranges] == ["bytes=1000000"]
    assert [path.name for path in out.iterdir()] == ["tinystories-gpt4"]
    assert {path.name: path.read_bytes() for path in (out / "tinystories-gpt4").glob("*.txt")} == dict.fromkeys(
        known.files, content
    )
    train, held_out = choose_sources(DataConfig(source=str(out / "tinystories-gpt4")))
    assert next(train.documents()) == next(held_out.documents()) == "Story 0."


def test_what_has_come_damaged_is_not_kept(tmp_path: Path) -> None:
    remote, left = write_dataset(tmp_path / "remote"), tmp_path / "out" / "bookcorpus.work-0123" / "data"
    left.mkdir(parents=True)
    name = "train-00000-of-00002.parquet"
    (left / f"{name}.part").write_bytes(b"x" * 100)
    args = ("--output_dir", str(tmp_path / "out"), "--dataset", "bookcorpus")
    with served(remote, BOOKS) as hub:
        done = download(tmp_path, hub.endpoint, *args)
        assert (done.exit_code, f"{name} has come damaged, and is removed" in done.stderr) == (2, True)
        assert download(tmp_path, hub.endpoint, *args).exit_code == 0
    assert (tmp_path / "out" / "bookcorpus" / "data" / name).read_bytes() == (remote / "data" / name).read_bytes()


@pytest.mark.parametrize("kind", ["closed", "silent", "offline", "no such name"])
def test_an_unreachable_hub_is_said_in_time_and_nothing_is_left(
    tmp_path: Path, silent_endpoint: str, kind: str
) -> None:
    endpoint = {"silent": silent_endpoint, "no such name": "http://hub.invalid"}.get(kind, closed_port())
    env = {"HF_HUB_OFFLINE": "1"} if kind == "offline" else {}
    start = time.monotonic()
    done = download(tmp_path, endpoint, "--output_dir", str(tmp_path / "out"), **env)
    assert time.monotonic() - start < UNREACHABLE_SECONDS
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "roneneldan/TinyStories: the Hugging Face hub at " in line
    assert "check the network" in line
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_has_gone_is_said(tmp_path: Path) -> None:
    with served(write_dataset(tmp_path / "remote"), "no/body") as hub:
        done = download(tmp_path, hub.endpoint, "--output_dir", str(tmp_path / "out"), "--dataset", "gutenberg")
    assert (done.exit_code, "sedthh/gutenberg_english: the hub refuses it" in done.stderr) == (2, True)


def test_the_list_of_datasets_needs_no_network(tmp_path: Path) -> None:
    done = download(tmp_path, closed_port(), "--list")
    assert done.exit_code == 0
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(KNOWN) == list(command._NAMES)
    assert "--output_dir is missing" in download(tmp_path, closed_port()).stderr


def test_what_hangs_is_not_waited_for() -> None:
    ended = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        in_time(ended.wait, 0.1)
    ended.set()
    assert in_time(lambda: 5, 10) == 5
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 / 0, 10)
