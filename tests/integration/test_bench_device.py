"""storyteller bench device records this machine, and plan and training read the record."""

import json

import pytest
import torch
from click.testing import CliRunner

from storyteller_ds.cli.bench import device
from storyteller_ds.engines.device_record import known_product_rate, recorded


@pytest.mark.skipif(torch.cuda.is_available(), reason="one card has nobody to exchange messages with")
def test_the_record_is_written_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "cache"))
    result = CliRunner().invoke(device, ["--output", str(tmp_path / "rates.json")], catch_exceptions=False)
    assert "all-to-all, out of each rank" in result.output
    place = torch.device("cpu")
    (entry,) = json.loads((tmp_path / "rates.json").read_text()).values()
    assert entry == recorded(place)
    assert set(entry["messages_byte_per_s"]) == {"all_reduce", "all_to_all"}
    assert known_product_rate(place, torch.float32) == entry["products_flop_per_s"]["fp32"]
