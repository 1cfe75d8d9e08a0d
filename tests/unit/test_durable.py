import pytest

from storyteller_ds.durable import write_atomically


def test_an_atomic_write_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "long first content")
    write_atomically(path, "second")
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storyteller_ds.durable.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "third")
    assert path.read_text() == "second"
