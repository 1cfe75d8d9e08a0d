"""Relative differences: their definition, and that no kind of difference is overlooked."""

import math

import pytest
import torch

from storyteller_ds.engines.differences import differences, largest, relative_difference


def test_relative_difference_against_its_definition():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(7, 3, generator=generator), torch.randn(7, 3, generator=generator)
    pairs = list(zip(a.double().flatten().tolist(), b.double().flatten().tolist(), strict=True))
    expected = math.sqrt(sum((x - y) ** 2 for x, y in pairs)) / math.sqrt(sum(y**2 for _, y in pairs))
    assert relative_difference(a, b) == pytest.approx(expected, rel=1e-12)
    assert relative_difference(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_difference(a, torch.zeros(7, 3)) > 1
    assert relative_difference(a, b.t()) == math.inf


def test_a_name_that_only_one_has_is_infinitely_far():
    one, two = torch.ones(2), 2 * torch.ones(2)
    found = differences({"c": one, "b": two}, {"a": one, "b": one})
    assert found == {"a": math.inf, "b": 1.0, "c": math.inf}
    assert list(found) == ["a", "b", "c"], "in the order of the reference"


def test_the_largest_is_named_and_nan_is_larger_than_anything():
    assert largest({"a": 0.5, "b": 2.0}) == ("b", 2.0)
    name, value = largest({"a": 1.0, "b": math.nan, "c": 5.0})
    assert (name, math.isnan(value)) == ("b", True)
    assert largest({}) == ("nothing", 0.0)
