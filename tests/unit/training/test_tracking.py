"""Requested trackers have to be installed."""

import importlib.util

import pytest

from storyteller_ds.config.training import TrackingConfig
from storyteller_ds.errors import ConfigError
from storyteller_ds.training.tracking import check_trackers


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny")])
def test_a_tracker_that_is_not_installed_is_refused(name, package, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else real(wanted))
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        check_trackers(TrackingConfig(**{name: True}))


def test_by_default_nothing_else_is_needed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    check_trackers(TrackingConfig())
