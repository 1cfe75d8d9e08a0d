"""A signal ends a command that writes files the same way Ctrl-C does."""

import signal
from pathlib import Path

import pytest

from storyteller_ds.cli.ending import ended_as_by_ctrl_c


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_is_half_written_is_removed(number, tmp_path):
    def write(file: Path) -> None:
        try:
            file.write_text("half")
            signal.raise_signal(number)
        finally:
            file.unlink()

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), ended_as_by_ctrl_c():
        write(tmp_path / "half")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before
