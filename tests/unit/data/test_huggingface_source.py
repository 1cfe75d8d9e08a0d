"""The hub is played by a server on this machine, in a subprocess's HF_ENDPOINT; nothing leaves the machine."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from storyteller_ds.data.sources.huggingface import PINNED_REVISIONS, HuggingFaceSource
from storyteller_ds.errors import DataError

datasets = pytest.importorskip("datasets", reason='needs pip install "storyteller_ds[hub]"')
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

REPO = Path(__file__).parents[3]
HUB_NAME = "someone/ShortStories"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
TINY_STORIES = "roneneldan/TinyStories"
PROCESS_SECONDS = 60
UNREACHABLE_SECONDS = 15

TRAIN_ROWS = ["  One day.\r\nThe end.\n", None, "Two\rcats.", " \n", "Three dogs.", "Vier Bären. 🐻"]
TRAIN = ["One day.\nThe end.", "Two\ncats.", "Three dogs.", "Vier Bären. 🐻"]
VALIDATION = ["Last one."]


def write_dataset(folder: Path) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    for number, rows in enumerate([TRAIN_ROWS[:4], TRAIN_ROWS[4:]]):
        table = pa.table({"text": rows, "pages": list(range(len(rows)))})
        pq.write_table(table, data / f"train-0000{number}-of-00002.parquet")
    table = pa.table({"text": VALIDATION, "pages": [1]})
    pq.write_table(table, data / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library reads it from the environment when it is imported, which is too early for a test.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "stories")


def refused(dataset: str | Path, split: str = "train", **fields: Any) -> str:
    with pytest.raises(DataError) as error:
        list(HuggingFaceSource(str(dataset), split, **fields).documents())
    message = str(error.value)
    assert "\n" not in message
    return message


# --- local folders ---


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_documents(folder: Path, streaming: bool) -> None:
    source = HuggingFaceSource(str(folder), "train", streaming=streaming)
    assert list(source.documents()) == TRAIN
    assert list(source.documents()) == TRAIN
    assert list(HuggingFaceSource(str(folder), "validation", streaming=streaming).documents()) == VALIDATION


def test_folder_with_files_named_in_its_card(folder: Path) -> None:
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: bedtime\n    path: data/validation-*\n---\nStories.\n"
    )
    assert list(HuggingFaceSource(str(folder), "bedtime").documents()) == VALIDATION


def test_folder_of_json_lines(tmp_path: Path) -> None:
    rows = [{"story": "One."}, {"story": "Two."}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(HuggingFaceSource(str(tmp_path), "train", text_field="story").documents()) == ["One.", "Two."]
    assert refused(tmp_path).endswith("no field 'text'; set data.text_field to one of: story")


@pytest.mark.parametrize("other", ["more.jsonl", "data.csv", "more/stories.jsonl"])
def test_data_files_that_the_library_passes_over_are_told(tmp_path: Path, other: str) -> None:
    row = json.dumps({"text": "One."})
    (tmp_path / "more").mkdir()
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "dataset_info.json", other):
        (tmp_path / name).write_text(row)
    source = HuggingFaceSource(str(tmp_path), "train")
    assert source.remarks() == [f"not read: {tmp_path / other}"]
    (tmp_path / other).unlink()
    assert source.remarks() == []


def test_a_file_that_git_lfs_has_not_fetched_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    assert refused(tmp_path).startswith(f"{tmp_path / 'train.parquet'} is a Git LFS pointer, not data; ")


@pytest.mark.parametrize("wanted", [1, 3, 4, 99])
def test_max_documents_counts_documents_not_rows(folder: Path, wanted: int) -> None:
    assert list(HuggingFaceSource(str(folder), "train", max_documents=wanted).documents()) == TRAIN[:wanted]


def test_folder_that_is_read_again_after_a_change(folder: Path) -> None:
    source = HuggingFaceSource(str(folder), "validation")
    file = folder / "data" / "validation-00000-of-00001.parquet"
    times = file.stat()
    before, fingerprint = list(source.documents()), source.fingerprint
    pq.write_table(pa.table({"text": ["Lost one."], "pages": [1]}), file)
    # A copy that keeps its time must not be mistaken for the old file in some cache.
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (before, list(source.documents())) == (VALIDATION, ["Lost one."])
    assert source.fingerprint != fingerprint


def test_missing_field_names_those_there(folder: Path) -> None:
    assert refused(folder, text_field="story").endswith("set data.text_field to one of: text, pages")


@pytest.mark.parametrize("field", ["text", "id;text"])
def test_columns_that_are_not_separated_by_commas_are_named(tmp_path: Path, field: str) -> None:
    (tmp_path / "train.csv").write_text("id;text\n1;A fox.\n2;A dog.\n")
    message = refused(tmp_path, text_field=field)
    assert "would be read as one column, named 'id;text'; separate the columns by commas in .csv" in message


def test_field_that_is_not_text(folder: Path) -> None:
    assert "'pages' of" in (message := refused(folder, text_field="pages"))
    assert "holds int, not text" in message


def test_missing_split_names_those_there(folder: Path) -> None:
    assert refused(folder, "test").endswith("has no split 'test'; it has: train, validation")
    with pytest.raises(DataError, match=r"it has: train, validation$"):
        _ = HuggingFaceSource(str(folder), "test").fingerprint


def test_split_without_a_document(folder: Path) -> None:
    table = pa.table({"text": ["  ", None], "pages": [1, 2]})
    pq.write_table(table, folder / "data" / "validation-00000-of-00001.parquet")
    assert "has no document in its field 'text'" in refused(folder, "validation")


def test_damaged_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "data" / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    assert "Parquet magic bytes not found" in refused(folder, "validation")
    # What the library would log of it is told by the error.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.jsonl", b'{"text": "x\n'),
        ("b.jsonl", b"Once upon a time.\n\nTwice."),
        ("b.jsonl", b'{"text": "caf\xe9"}\n'),
        ("b.csv", b'text,id\n"x,1\n,,,,\n'),
        ("b.parquet", b"PAR1 and no more"),
        ("b.csv", b""),
        ("b.jsonl", b""),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes) -> None:
    good = {".jsonl": b'{"text": "One."}\n', ".csv": b"text,id\nOne.,1\n", ".parquet": b""}[Path(name).suffix]
    (tmp_path / name).write_bytes(content)
    if good and content:
        (tmp_path / f"a{Path(name).suffix}").write_bytes(good)
    assert refused(tmp_path).startswith(f"{tmp_path / name} cannot be read: ")
    assert capfd.readouterr() == ("", "")


def test_separator_within_a_text(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "One."}\n{"text": "Two.<|endoftext|>Three."}\n')
    assert "has <|endoftext|> within a text" in refused(tmp_path)


def test_text_files_that_a_card_names_are_read_by_the_line_and_never_split_wrongly(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.txt\n---\n")
    (tmp_path / "a.txt").write_text("One.\nTwo.\n")
    assert list(HuggingFaceSource(str(tmp_path), "train").documents()) == ["One.", "Two."]
    (tmp_path / "a.txt").write_text("One.\nStill one.\n<|endoftext|>\nTwo.\n")
    assert "put the stories into a text file" in refused(tmp_path)


def test_damaged_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\nconfigs: [a: b: c\n---\n")
    assert "README.md line 1: " in refused(folder)


def test_folder_without_data(tmp_path: Path) -> None:
    assert "doesn't contain any data files" in refused(tmp_path)


def fingerprints(dataset: str, revision: str | None = None) -> set[str]:
    changes: list[dict[str, Any]] = [{}, {"split": "validation"}, {"text_field": "pages"}, {"max_documents": 2}]
    fields = {"dataset": dataset, "split": "train", "revision": revision}
    return {HuggingFaceSource(**(fields | change)).fingerprint for change in changes}


def test_folder_fingerprint_changes_with_all_that_is_asked_for(folder: Path) -> None:
    found = fingerprints(str(folder))
    assert len(found) == 4
    assert all(re.fullmatch(r"[0-9a-f]{64}", fingerprint) for fingerprint in found)


def test_folder_fingerprint_does_not_change_with_its_place(folder: Path, tmp_path: Path) -> None:
    before = HuggingFaceSource(str(folder), "train").fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert HuggingFaceSource(str(moved), "train").fingerprint == before


# --- names and revisions ---


def test_tiny_stories_is_pinned() -> None:
    source = HuggingFaceSource(TINY_STORIES, "train")
    assert source.name == "roneneldan/TinyStories@f54c09fd (train)"
    pinned = HuggingFaceSource(TINY_STORIES, "train", PINNED_REVISIONS[TINY_STORIES])
    assert source.fingerprint == pinned.fingerprint


def test_hub_fingerprint_changes_with_all_that_is_asked_for() -> None:
    found = fingerprints(HUB_NAME, COMMIT)
    assert len(found | fingerprints(HUB_NAME, OTHER_COMMIT) | fingerprints("someone/Else", COMMIT)) == 12
    assert HuggingFaceSource(HUB_NAME, "train", COMMIT, streaming=True).fingerprint in found


@pytest.mark.parametrize("revision", ["main", "v1.0", "", COMMIT[:8], COMMIT.upper(), COMMIT + "0", COMMIT + "\n"])
def test_revision_that_is_missing_or_no_commit(revision: str) -> None:
    assert "data.revision=<commit sha>" in refused(TINY_STORIES, revision=revision)
    assert "data.revision=<commit sha>" in refused(HUB_NAME)


@pytest.mark.parametrize("dataset", ["json", "no/such/folder", "./stories", "hf://datasets/a/b", "/absent"])
def test_neither_folder_nor_hub_name(dataset: str) -> None:
    assert "neither a folder here nor a hub name" in refused(dataset, revision=COMMIT)


def test_folder_passes_over_the_revision_of_another_dataset(folder: Path) -> None:
    source = HuggingFaceSource(str(folder), "train", COMMIT)
    assert list(source.documents()) == TRAIN
    assert source.fingerprint == HuggingFaceSource(str(folder), "train").fingerprint


@pytest.mark.parametrize("split", ["train[:10]", "train+validation", "", "../train"])
def test_split_or_number_that_cannot_be(split: str) -> None:
    assert "not the name of a split" in refused(TINY_STORIES, split)
    assert "give 1 or more" in refused(TINY_STORIES, max_documents=0)


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "storyteller_ds[hub]"' in refused(TINY_STORIES)


# --- the hub, each read in a process of its own: the libraries read HF_ENDPOINT when they are imported ---

READ = """
import json, sys
from storyteller_ds.data.sources.huggingface import HuggingFaceSource
from storyteller_ds.errors import DataError
source = HuggingFaceSource(**json.loads(sys.argv[1]))
try:
    print(json.dumps(source.has_split(sys.argv[2]) if sys.argv[2:] else list(source.documents())))
except DataError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def read_in_process(
    home: Path, endpoint: str, env: dict[str, str] | None = None, asked: tuple[str, ...] = (), **fields: Any
) -> tuple[int, str]:
    """Return the exit code and what the process printed; a healthy or refused run leaves stderr empty.

    It prints the documents or, if a split is asked for, whether the dataset has it.
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


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's interface as reading a public dataset takes."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.asked.append(path)
        about = f"/api/datasets/{HUB_NAME}/"
        if path.startswith(f"/datasets/{HUB_NAME}/resolve/{COMMIT}/"):
            self.answer_file(path.partition(COMMIT + "/")[2])
        elif not path.startswith(about):
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif path == f"{about}revision/{COMMIT}":
            self.answer(200, json.dumps({"id": HUB_NAME, "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"{about}tree/{COMMIT}"):
            listed = self.entries(self.folder / path.partition(COMMIT)[2].lstrip("/"))
            self.answer(200, json.dumps(listed).encode())
        else:
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})

    do_HEAD = do_GET

    def entries(self, folder: Path) -> list[dict[str, object]]:
        return [
            {
                "type": "directory" if path.is_dir() else "file",
                "oid": "0" * 40,
                "size": path.stat().st_size,
                "path": path.relative_to(self.folder).as_posix(),
            }
            for path in sorted(folder.iterdir())
        ]

    def answer_file(self, name: str) -> None:
        file = self.folder / name
        if not file.is_file():
            self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.answer(206, content[first : last + 1], headers)
        else:
            self.answer(200, content, headers)

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class Hub(NamedTuple):
    endpoint: str
    asked: list[str]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    fields = {"folder": write_dataset(tmp_path / "remote"), "asked": []}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (FakeHub,), fields)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Hub(f"http://127.0.0.1:{server.server_port}", fields["asked"])
        server.shutdown()
        thread.join(timeout=PROCESS_SECONDS)


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
    # Where it cannot be asked, a corpus that was prepared from a dataset with the split is still found.
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


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    # The kernel accepts for a listening socket, so that the client connects and then waits in vain.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


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


def test_unreachable_hub_whose_client_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from storyteller_ds.data.sources import huggingface

    released = threading.Event()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface, "PROBE_TOTAL_SECONDS", 0.1)
    # As a name lookup does that no timeout of the HTTP client covers.
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: released.wait(PROCESS_SECONDS))
    try:
        assert "cannot be reached for roneneldan/TinyStories (no answer within" in refused(TINY_STORIES)
    finally:
        released.set()
