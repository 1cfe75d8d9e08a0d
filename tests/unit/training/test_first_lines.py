"""The first lines of a run."""

import pytest
import torch
from storyteller_kernels import dispatch
from storyteller_kernels.dispatch import Backend

from storyteller_ds.config import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.training.announcement import model_and_devices


@pytest.mark.parametrize(("kernels", "loops"), [("triton", False), ("reference", True)])
def test_a_run_says_which_kernels_it_uses_and_that_its_experts_are_slow(monkeypatch, kernels, loops):
    monkeypatch.setattr(dispatch, "backend", lambda: Backend(kernels, "auto on Imaginary 100"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    loaded = load_config("tiny_test")
    _, run, *warnings = model_and_devices(loaded, make_plan(loaded.run, 1), torch.device("cuda", 0))
    assert run.startswith("one device (cuda, bf16); ")
    compiled = "; blocks are compiled at the first step" * (kernels == "triton")
    assert run.endswith(f"kernels: {kernels} (auto on Imaginary 100){compiled}")
    assert [line.startswith("warning: experts run one after the other") for line in warnings] == [True] * loops
