"""What several tests of the data have in common."""

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
