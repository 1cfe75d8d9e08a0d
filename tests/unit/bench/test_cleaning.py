"""The printed cleaning speed is what was measured."""

from storyteller_ds.bench import cleaning


def test_a_small_text() -> None:
    found = cleaning.measure(0.3, processes=1)
    assert 0.3 <= found.megabytes < 0.31
    assert found.rate == found.megabytes / found.seconds
    assert found.limit == 1 / sum(found.alone.values())
    assert f"{found.rate:.1f} MB/s" in found.line()
    assert all(each > 0 for each in found.alone.values())
