"""Fixtures shared by the data tests."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.small_corpus import STORIES


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file that contains STORIES."""
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join(STORIES), encoding="utf-8")
    return path


@pytest.fixture
def empty_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for the `datasets` library."""
    import datasets

    # The library reads this from the environment on import, too early for a test to set it there.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    # The kernel accepts connections to a listening socket, so the client connects and then waits in vain.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
