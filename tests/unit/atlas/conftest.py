"""Small mixtures, and a text to run them on."""

from pathlib import Path

import pytest

from storyteller_ds import load, train
from storyteller_ds.config.data import DataConfig
from tests.support.rule_router import write_ruled
from tests.support.small_mixtures import KINDS, SETTINGS, STORIES


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of barely trained models."""
    folder = tmp_path_factory.mktemp("mixtures")
    (folder / "stories.txt").write_text("\n\n".join(STORIES))
    return {
        kind: train("tiny_test", {**SETTINGS, **others}, data=folder / "stories.txt", output_dir=folder / kind).folder
        for kind, others in KINDS.items()
    }


@pytest.fixture(scope="session")
def text(runs) -> DataConfig:
    """All stories, as validation text."""
    return DataConfig(source="builtin", validation=str(runs["char"].parent / "stories.txt"))


@pytest.fixture(scope="session")
def ruled(runs) -> Path:
    """A mixture that sends token id i to expert i % 3 as the first choice, and no token to expert 3."""
    model = load(runs["char"], device="cpu", precision="fp32")
    return write_ruled(model, lambda i: i % 3, 3, runs["char"].parent / "ruled")
