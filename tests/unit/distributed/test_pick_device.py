"""The device that a rank picks, and whether its kernels can run."""

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


@pytest.fixture
def cards(monkeypatch) -> list[str]:
    """Three CUDA cards, the second with the most free memory; returns the cards that are made current."""
    free, current = [5, 9, 7], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (free[card], 10))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    monkeypatch.setattr("storyteller_ds.distributed.world.choice_for", lambda device: None)
    return current


@pytest.mark.parametrize(
    ("wanted", "local_rank", "card"),
    [("auto", None, 1), ("cuda", None, 1), ("cuda:0", None, 0), ("cuda:2", None, 2), ("auto", 0, 0), ("cuda", 2, 2)],
)
def test_one_card_of_several(cards, wanted, local_rank, card):
    assert pick_device(wanted, local_rank) == torch.device("cuda", card)
    assert cards == [f"cuda:{card}"]


@pytest.mark.parametrize("wanted", ["cuda:3", "cuda:x", "cuda:-1", "cuda:1:1"])
def test_a_card_that_is_not_there_is_refused(cards, wanted):
    with pytest.raises(ConfigError, match=f"device={wanted}, but the CUDA cards here are cuda:0 to cuda:2"):
        pick_device(wanted, None, "device")
    assert cards == []


def test_a_rank_too_many_is_refused(cards):
    with pytest.raises(ConfigError, match="rank 3 of this machine has no CUDA card of its own, there are 3"):
        pick_device("cuda", 3)


def test_only_cards_have_numbers(cards):
    with pytest.raises(ConfigError, match="device=cpu:0, but this machine has only"):
        pick_device("cpu:0", None, "device")


@pytest.mark.parametrize(
    ("kernels", "reason"), [("fast", "is not known; use auto, triton or reference"), ("triton", "not possible")]
)
def test_kernels_that_cannot_run_are_a_users_error(monkeypatch, kernels, reason):
    monkeypatch.setenv("STORYTELLER_KERNELS", kernels)
    with pytest.raises(ConfigError, match=f"STORYTELLER_KERNELS={kernels}.*{reason}"):
        pick_device("cpu", 0)
