"""--push_to_hub with a fake hub, a server on this machine; nothing leaves the machine.

The command runs in its own process, since huggingface_hub reads HF_ENDPOINT when it is imported.
"""

import base64
import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from storyteller_ds import train
from tests.support.distributed import Outcome, run_command
from tests.support.small_runs import SMALLEST

pytest.importorskip("huggingface_hub")

REPO, TOKEN = "somebody/stories", "hf_good"
SECONDS = 60


class Hub(NamedTuple):
    endpoint: str
    made: list[dict[str, object]]
    """Bodies of the requests that create a repository."""
    files: dict[str, bytes]
    """The uploaded files."""


class FakeHub(BaseHTTPRequestHandler):
    """The part of the hub's interface that an upload of small files needs."""

    hub: Hub

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif urlsplit(self.path).path == "/api/whoami-v2":
            self.answer(200, {"type": "user", "name": "somebody", "auth": {"accessToken": {"role": "write"}}})
        else:
            self.answer(404, {"error": "not here"})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            body = json.loads(content)
            if body.get("organization") != "somebody":
                self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
                return
            self.hub.made.append(body)
            self.answer(200, {"url": f"{self.hub.endpoint}/{REPO}", "name": REPO})
        elif path == f"/api/models/{REPO}/preupload/main":
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer(200, {"files": modes})
        elif path == f"/api/models/{REPO}/commit/main":
            for entry in map(json.loads, content.splitlines()):
                if entry["key"] == "file":
                    self.hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer(200, {"commitUrl": f"{self.hub.endpoint}/{REPO}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.answer(200, {"errors": [], "warnings": []})

    def answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (FakeHub,), {})) as server:
        played = Hub(f"http://127.0.0.1:{server.server_port}", [], {})
        server.RequestHandlerClass.hub = played
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield played
        server.shutdown()
        thread.join(timeout=SECONDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        "tiny_test", {**SMALLEST, "data.builtin_stories": 60}, output_dir=tmp_path_factory.mktemp("run") / "run"
    ).folder


def push(run: Path, output: Path, repo: str, **env: str) -> Outcome:
    home = {"HF_HOME": str(output.parent / "home"), "HF_TOKEN": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "storyteller_ds", "export", "--checkpoint", str(run), "--to", "safetensors"]
    return run_command([*command, "--output", str(output), "--push_to_hub", repo], SECONDS, {**home, **env})


def test_the_whole_folder_is_uploaded_into_a_private_repository(run, hub, tmp_path):
    done = push(run, tmp_path / "export", REPO, HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"hub: {hub.endpoint}/{REPO}"
    [made] = hub.made
    assert made["name"] == "stories"
    assert made.get("private") or made.get("visibility") == "private"  # from huggingface_hub 1 or 2
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("repo", "env", "message"),
    [
        (REPO, {}, "nobody is logged in to the hub; run `hf auth login`"),
        (REPO, {"HF_TOKEN": "hf_bad"}, "nobody is logged in to the hub; run `hf auth login`"),
        (REPO, {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "closed"}, "check the network"),
        (REPO, {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "check the network"),
        ("a/b/c", {"HF_TOKEN": TOKEN}, "give OWNER/NAME"),
    ],
)
def test_what_is_in_the_way_is_one_line_before_the_work(run, hub, tmp_path, repo, env, message):
    settings = {"HF_ENDPOINT": hub.endpoint, **env}
    if settings["HF_ENDPOINT"] == "closed":
        settings["HF_ENDPOINT"] = closed_port()
    done = push(run, tmp_path / "export", repo, **settings)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"storyteller: --push_to_hub {repo}: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "hf_" not in done.stderr
    assert not (tmp_path / "export").exists()


def test_a_repository_that_one_may_not_make_costs_no_export(run, hub, tmp_path):
    done = push(run, tmp_path / "export", "others/stories", HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("storyteller: --push_to_hub others/stories: ")
    assert "log in as somebody who may write there" in done.stderr
    assert (tmp_path / "export" / "model.safetensors").exists()
    assert hub.files == {}
