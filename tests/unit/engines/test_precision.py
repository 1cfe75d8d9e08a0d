"""The dtype that auto means, on simulated cards."""

from types import SimpleNamespace

import pytest
import torch

from storyteller_ds.config import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.deepspeed.config import check_json, passed_json
from storyteller_ds.engines.precision import DTYPE_NAMES, check_same_dtype, held_dtype, run_dtype
from storyteller_ds.errors import ConfigError
from tests.support.distributed import DS_CONFIGS

GPU, CPU = torch.device("cuda", 1), torch.device("cpu")
CARDS = {
    "GTX 1080": ((6, 1), "fp32"),  # its fp16 has 1/64 of the fp32 rate
    "V100": ((7, 0), "fp16"),
    "T4": ((7, 5), "fp16"),
    "A100": ((8, 0), "bf16"),
    "RTX 4090": ((8, 9), "bf16"),
    "H100": ((9, 0), "bf16"),
    "B200": ((10, 0), "bf16"),
}
every_card = pytest.mark.parametrize(("capability", "fast"), CARDS.values(), ids=CARDS)


@pytest.fixture
def card(monkeypatch):
    """A machine whose second card has a given capability; torch claims that all of them support bf16."""

    def install(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", {GPU: capability}.__getitem__)

    return install


def run(dtype: str = "auto", zero_stage: int | None = None) -> RunConfig:
    return RunConfig.model_validate({"precision": {"dtype": dtype}, "parallel": {"zero_stage": zero_stage}})


@every_card
@pytest.mark.parametrize("zero_stage", [None, 0, 1, 2, 3])
def test_auto_is_what_the_matrix_units_of_the_card_take(card, capability, fast, zero_stage):
    card(capability)
    if zero_stage == 0 and fast == "fp16":
        fast = "fp32"  # stage 0 has no loss scaling
    assert DTYPE_NAMES[run_dtype(run("auto", zero_stage), GPU)] == fast
    held = held_dtype(run("auto", zero_stage), GPU)
    assert DTYPE_NAMES[held] == (fast if zero_stage else "fp32")


@every_card
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_taken_on_every_card(card, capability, fast, dtype):
    card(capability)
    assert DTYPE_NAMES[run_dtype(run(dtype), GPU)] == dtype


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_auto_is_fp32(device):
    assert run_dtype(run(), torch.device(device)) == torch.float32


@pytest.mark.parametrize(
    ("architecture", "fast"),
    [
        ("gfx900", "fp32"),
        ("gfx906:sramecc+:xnack-", "fp32"),
        ("gfx908:sramecc+:xnack-", "bf16"),
        ("gfx90a:sramecc+:xnack-", "bf16"),
        ("gfx942:sramecc+:xnack-", "bf16"),
        ("gfx1030", "fp32"),
        ("gfx1100", "bf16"),
    ],
)
def test_on_amd_the_architecture_says_it(card, monkeypatch, architecture, fast):
    card((9, 0))  # what ROCm calls a capability is a different number
    monkeypatch.setattr(torch.version, "hip", "7.0")
    properties = SimpleNamespace(gcnArchName=architecture)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {GPU: properties}.__getitem__)
    assert DTYPE_NAMES[run_dtype(run(), GPU)] == fast


@every_card
def test_deepspeed_is_given_the_same_format(card, capability, fast):
    card(capability)
    loaded = load_config(overrides=[], ds_config=DS_CONFIGS / "zero2.json")
    passed = passed_json(loaded.run, loaded.deepspeed, make_plan(loaded.run, 2), GPU)
    assert (passed["bf16"]["enabled"], passed["fp16"]["enabled"]) == (fast == "bf16", fast == "fp16")
    check_json(passed)


class OfTwo(World):
    """Rank 0 of two ranks; the other rank's card takes fp16."""

    def together(self, action):
        return [action(), "fp16"]


def test_ranks_with_cards_of_different_formats_are_refused(card):
    card((8, 0))
    world = OfTwo(0, 0, 2, 1)
    with pytest.raises(ConfigError, match=r"auto means bf16 and fp16 on the cards .*set precision\.dtype=fp32"):
        check_same_dtype(run(zero_stage=2), GPU, world)
    card((7, 0))
    check_same_dtype(run(zero_stage=2), GPU, world)
