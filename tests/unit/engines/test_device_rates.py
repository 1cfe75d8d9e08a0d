"""The rates that training is compared with are those of this device."""

import pytest
import torch

from storyteller_ds.engines import device_rates
from storyteller_ds.engines.device_rates import copy_rate, launch_time, product_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_timed_and_its_arithmetic_counted(monkeypatch, dtype):
    seconds = iter([0.0, 9.0, 9.0, 11.0, 11.0, 12.0, 12.0, 16.0])  # one run to warm up, and three more
    monkeypatch.setattr(device_rates.time, "perf_counter", lambda: next(seconds))
    assert product_rate(CPU, dtype) == 2 * 2048 * 512 * 512 / 1.0


def test_a_copy_reads_and_writes(monkeypatch):
    seconds = iter([0.0, 9.0, 9.0, 11.0, 11.0, 12.0, 12.0, 16.0])
    monkeypatch.setattr(device_rates.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(device_rates, "_COPY", 1000)
    assert copy_rate(CPU) == 2000


def test_a_launch_is_short():
    assert 0 < launch_time(CPU) < 1e-3


def test_random_streams_are_left_alone():
    before = torch.get_rng_state()
    product_rate(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
