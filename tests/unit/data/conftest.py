"""What several tests of the data have in common."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.small_corpus import STORIES


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of STORIES."""
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join(STORIES), encoding="utf-8")
    return path


@pytest.fixture
def empty_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the `datasets` library."""
    import datasets

    # The library reads it from the environment when it is imported, which is too early for a test.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    # The kernel accepts for a listening socket, so that the client connects and then waits in vain.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
