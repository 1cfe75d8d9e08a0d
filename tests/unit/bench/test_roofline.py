"""What `storyteller bench train` counts in a step."""

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from storyteller_ds.bench.roofline import Operators
from storyteller_ds.cli.bench import bench


def test_operators_and_bytes_are_counted_by_hand():
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    with Operators() as found:
        c = a @ b  # a product: its traffic is not counted
        d = c.view(300) + 1  # the view is not counted; 300 numbers read, 300 written
        e = torch.empty(5)  # allocates memory without writing to it
        d.mul_(2)  # in place: one tensor, counted once
    assert e.shape == (5,)
    assert found.number == 3
    assert found.traffic_bytes == 4 * (300 + 300) + 4 * 300


def test_attention_is_a_product():
    q = torch.ones(1, 2, 8, 4)
    with Operators() as found:
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert found.traffic_bytes == 0
    assert found.number >= 1


@pytest.mark.usefixtures("fixed_rates")
def test_the_table_says_what_a_step_is_made_of():
    outcome = CliRunner().invoke(bench, ["train", "--config", "tiny_test", "parallel.device=cpu"])
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.stdout.splitlines()
    parts = [line.split("|")[1].strip() for line in lines if line.startswith("| ") and not line.startswith("| ---")]
    assert parts == [
        "part of a step",
        "matrix products",
        "reads and writes of other operators",
        "launches of operators",
        "the whole step, measured",
    ]
    assert "100%" in outcome.stdout


@pytest.fixture
def fixed_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the rates that would take time to measure."""
    from storyteller_ds.bench import roofline

    monkeypatch.setattr(roofline, "product_rate", lambda *_: 1e11)
    monkeypatch.setattr(roofline, "copy_rate", lambda *_: 1e10)
    monkeypatch.setattr(roofline, "launch_time", lambda *_: 1e-6)
