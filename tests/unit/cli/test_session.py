"""The first lines of a run."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from storyteller_kernels import dispatch
from storyteller_kernels.dispatch import Backend

from storyteller_ds.cli.session import Session
from storyteller_ds.config import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.training.interruption import Interruption


@pytest.mark.parametrize(("activation", "loops"), [("swiglu", False), ("gelu", True)])
def test_a_run_says_which_kernels_it_uses_and_that_its_experts_are_slow(monkeypatch, tmp_path, activation, loops):
    monkeypatch.setattr(dispatch, "backend", lambda: Backend("triton", "auto on Imaginary 100"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    out = io.StringIO()
    loaded = load_config("tiny_test", None, [f"model.activation={activation}"])
    plan, world = make_plan(loaded.run, 1), World(0, 0, 1, 1)
    console = Console(file=out, width=1000)
    Session(loaded, plan, world, torch.device("cuda", 0), Path(tmp_path), console, Interruption())._introduce()
    _, run, *warnings = out.getvalue().splitlines()
    assert run.startswith("one device (cuda, bf16); ")
    followed = "kernels: triton (auto on Imaginary 100)"
    assert run.endswith(f"{followed}, but experts one after the other in plain torch" if loops else followed)
    assert [line.startswith("warning: experts run one after the other") for line in warnings] == [True] * loops
