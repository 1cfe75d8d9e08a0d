"""The RNG state of a rank: dropout and gating noise draw from it."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def seed_rng(seed: int, step: int, rank: int) -> None:
    """Seed this rank's generators from the run's seed, the step and the rank."""
    digest = hashlib.sha256(f"rng/{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """State of the generators that training draws from on this rank."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(device: torch.device, read: Mapping[str, Tensor]) -> None:
    """Restore what rng_state returned; generators that the checkpoint does not have are left alone.

    Raises:
        RuntimeError: a tensor is not the state of a generator.
    """
    torch.set_rng_state(read["cpu"])
    if device.type == "cuda" and "cuda" in read:
        torch.cuda.set_rng_state(read["cuda"], device)
    elif device.type == "mps" and "mps" in read:
        torch.mps.set_rng_state(read["mps"])
