"""Which runs compile their blocks."""

import pytest
import torch
from storyteller_kernels import dispatch
from storyteller_kernels.dispatch import Backend

from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines.compiling import compiles
from storyteller_ds.errors import ConfigError

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def run(wanted: str, zero_stage: int | None = None, experts: int = 8) -> RunConfig:
    sections = {"train": {"compile": wanted}, "parallel": {"zero_stage": zero_stage}, "moe": {"num_experts": experts}}
    return RunConfig.model_validate(sections)


@pytest.mark.parametrize(("kernels", "expected"), [("triton", True), ("reference", False)])
def test_auto_is_for_cards_with_triton(monkeypatch, kernels, expected):
    monkeypatch.setattr(dispatch, "backend", lambda: Backend(kernels, "imagined"))
    for stage in (None, 0, 1, 2):
        assert compiles(run("auto", stage), GPU, "expert_parallel") == expected
    assert not compiles(run("auto"), CPU, "local")
    assert not compiles(run("auto", 3), GPU, "local")
    assert not compiles(run("auto", 2), GPU, "stock")
    assert compiles(run("auto", 2, experts=0), GPU, "stock") == expected


def test_on_and_off_are_obeyed_or_refused():
    assert compiles(run("on"), CPU, "local")
    assert not compiles(run("off"), GPU, "local")
    with pytest.raises(ConfigError, match=r"train\.compile=on is not possible here: ZeRO-3 gathers"):
        compiles(run("on", 3), CPU, "local")
    with pytest.raises(ConfigError, match="strategy autoep are DeepSpeed's own"):
        compiles(run("on", 2), CPU, "autoep")
