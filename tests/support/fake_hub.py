"""A local server that imitates the Hugging Face hub; nothing leaves the machine."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.small_dataset import COMMIT, HUB_NAME

PROCESS_SECONDS = 60


class FakeHub(BaseHTTPRequestHandler):
    """The part of the hub's interface that reading a public dataset needs."""

    folder: Path
    name: str
    commit: str
    asked: list[str]
    ranges: list[str]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.asked.append(path)
        about = f"/api/datasets/{self.name}"
        if path.startswith(f"/datasets/{self.name}/resolve/{self.commit}/"):
            self.answer_file(path.partition(self.commit + "/")[2])
        elif not path.startswith(about):
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif path in (about, f"{about}/revision/{self.commit}"):
            described = {"id": self.name, "sha": self.commit, "siblings": self.siblings(), "tags": ["license:mit"]}
            self.answer(200, json.dumps(described).encode())
        elif path.startswith(f"{about}/tree/{self.commit}"):
            listed = self.entries(self.folder / path.partition(self.commit)[2].lstrip("/"))
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

    def siblings(self) -> list[dict[str, object]]:
        siblings: list[dict[str, object]] = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
                siblings.append(
                    {"rfilename": path.relative_to(self.folder).as_posix(), "size": len(content), "lfs": lfs}
                )
        return siblings

    def answer_file(self, name: str) -> None:
        file = self.folder / name
        if not file.is_file():
            self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.commit}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            self.ranges.append(part[0])
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
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
    """Paths of all requests."""
    ranges: list[str]
    """Byte ranges of the requests for parts of files."""


@contextmanager
def served(folder: Path, name: str = HUB_NAME, commit: str = COMMIT) -> Iterator[Hub]:
    """A hub whose only dataset is a folder.

    Args:
        folder: folder with the files.
        name: name of the dataset.
        commit: newest revision of the dataset.
    """
    fields = {"folder": folder, "name": name, "commit": commit, "asked": [], "ranges": []}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (FakeHub,), fields)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Hub(f"http://127.0.0.1:{server.server_port}", fields["asked"], fields["ranges"])
        finally:
            server.shutdown()
            thread.join(timeout=PROCESS_SECONDS)
