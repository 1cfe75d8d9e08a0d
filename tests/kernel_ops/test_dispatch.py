"""The choice of implementation."""

from collections.abc import Iterator

import pytest
from storyteller_kernels.dispatch import backend

VARIABLE = "STORYTELLER_KERNELS"


@pytest.fixture(autouse=True)
def _fresh_choice() -> Iterator[None]:
    backend.cache_clear()
    yield
    backend.cache_clear()


@pytest.mark.parametrize("value", ["Reference", "trition", "", "auto "])
def test_an_unknown_value_is_refused_with_the_known_ones(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=rf"{VARIABLE}={value} .*auto.*reference"):
        backend()


def test_reference_is_chosen_when_asked_for(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    assert backend().name == "reference"
    assert VARIABLE in backend().reason


def test_the_default_is_auto(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    default = backend()
    backend.cache_clear()
    monkeypatch.setenv(VARIABLE, "auto")
    assert backend() == default


def test_the_choice_is_made_once(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    first = backend()
    monkeypatch.setenv(VARIABLE, "nonsense")
    assert backend() is first
