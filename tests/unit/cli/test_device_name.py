"""Device names as users type them."""

import click
import pytest

from storyteller_ds.cli.device_name import DeviceName


@pytest.mark.parametrize("name", ["auto", "cpu", "CPU", "mps", "cuda", "Cuda:1"])
def test_any_case_will_do(name):
    assert DeviceName().convert(name, None, None) == name.lower()


@pytest.mark.parametrize("name", ["gpu", "", "cpu:0", "cuda:", "cuda:-1"])
def test_others_are_refused(name):
    with pytest.raises(click.BadParameter, match="is not a device; give auto"):
        DeviceName().convert(name, None, None)
