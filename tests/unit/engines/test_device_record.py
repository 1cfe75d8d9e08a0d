"""The record of a device's rates: written once, read by whoever needs a rate."""

import json

import pytest
import torch

from storyteller_ds.engines import device_record
from storyteller_ds.engines.device_record import device_key, known_product_rate, read_records, recorded, write_record

CPU = torch.device("cpu")
ENTRY = {"products_flop_per_s": {"fp32": 123.0}, "copy_byte_per_s": 1.0, "launch_s": 1.0, "messages_byte_per_s": {}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path))
    monkeypatch.setattr(device_record, "product_rate", lambda *_: 7.0)
    return tmp_path


def test_a_recorded_rate_is_used_and_an_unknown_one_measured():
    assert known_product_rate(CPU, torch.float32) == 7.0
    write_record(CPU, ENTRY)
    assert known_product_rate(CPU, torch.float32) == 123.0
    assert known_product_rate(CPU, torch.bfloat16) == 7.0


def test_entries_of_other_devices_stay(cache):
    (cache / device_record.FILE).write_text(json.dumps({"another": ENTRY}))
    write_record(CPU, ENTRY)
    assert set(read_records()) == {"another", device_key(CPU)}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"%s": 3}', '{"%s": {}}'])
def test_a_record_that_is_none_is_measured_again(cache, text):
    (cache / device_record.FILE).write_text(text.replace("%s", device_key(CPU)))
    assert recorded(CPU) is None
    assert known_product_rate(CPU, torch.float32) == 7.0


@pytest.mark.parametrize("rate", ["fast", 0.0, -1.0, None])
def test_a_rate_that_is_none_is_measured_again(rate):
    write_record(CPU, {**ENTRY, "products_flop_per_s": {"fp32": rate}})
    assert known_product_rate(CPU, torch.float32) == 7.0
