"""The device of a rank, and that its kernels can run."""

import pytest
import torch
from storyteller_kernels.dispatch import backend

from storyteller_ds.distributed.world import pick_device
from storyteller_ds.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("STORYTELLER_KERNELS", raising=False)
    backend.cache_clear()
    yield
    backend.cache_clear()


def test_auto_is_the_best_there_is(monkeypatch):
    assert pick_device("auto", 0) == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto", 0) == torch.device("mps")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"parallel.device=cuda.*has only: cpu"):
        pick_device("cuda", 0)


@pytest.mark.parametrize(
    ("kernels", "reason"), [("fast", "is not known; use auto, triton or reference"), ("triton", "not possible")]
)
def test_kernels_that_cannot_run_are_a_users_error(monkeypatch, kernels, reason):
    monkeypatch.setenv("STORYTELLER_KERNELS", kernels)
    with pytest.raises(ConfigError, match=f"STORYTELLER_KERNELS={kernels}.*{reason}"):
        pick_device("cpu", 0)
