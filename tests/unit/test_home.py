"""User ids without a name, and home folders that are missing or cannot be written."""

import getpass
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from storyteller_ds import home
from storyteller_ds.errors import UserError

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
VARIABLES = (
    *NAMES,
    "HOME",
    "STORYTELLER_CACHE",
    "TORCH_EXTENSIONS_DIR",
    "TRITON_HOME",
    "WANDB_CACHE_DIR",
    "WANDB_DATA_DIR",
)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of a system that knows nothing else about the user."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(home, "_notice", None)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def own(system: Path) -> Path:
    return system / f"storyteller_ds-{os.getuid()}"


def test_a_user_that_the_system_does_not_know(system):
    with pytest.raises(KeyError):
        getpass.getuser()  # control
    with pytest.raises(RuntimeError):
        Path.home()
    home.settle_home()
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path("~/.cache/storyteller_ds").expanduser() == own(system) / ".cache" / "storyteller_ds"
    assert own(system).stat().st_mode & 0o777 == 0o700
    assert home.home_notice() == (
        f"there is no home folder: caches are in {own(system)}, and may not last; "
        "set STORYTELLER_CACHE to a folder that does"
    )


def test_an_empty_home_is_none(system, monkeypatch):
    monkeypatch.setenv("HOME", "")
    home.settle_home()
    assert os.environ["HOME"] == str(own(system))


def test_a_home_that_only_the_system_knows_is_told_to_everybody(system, tmp_path, monkeypatch):
    entry = pwd.struct_passwd(("me", "x", 1, 1, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    home.settle_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert home.home_notice() is None
    assert "LOGNAME" not in os.environ


def test_where_all_is_in_order_nothing_changes(system, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "made" / "later"))
    monkeypatch.setenv("USER", "me")
    before = dict(os.environ)
    home.settle_home()
    assert dict(os.environ) == before
    assert home.home_notice() is None
    assert list(system.iterdir()) == []


@pytest.fixture
def locked_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder that can be read but not written, even by root."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / ".cache").write_text("no folder can be made here")
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_a_home_that_cannot_be_written_keeps_its_logins(system, locked_home):
    home.settle_home()
    assert os.environ["HOME"] == str(locked_home)
    assert os.environ["STORYTELLER_CACHE"] == str(own(system) / "storyteller_cache")
    assert os.environ["WANDB_CACHE_DIR"] == str(own(system) / "wandb_cache_dir")
    assert str(home.home_notice()).startswith(
        f"the home folder {locked_home} cannot be written: caches are in {own(system)}"
    )


def test_a_home_that_cannot_even_be_entered_is_none(system, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    home.settle_home()
    assert os.environ["HOME"] == str(own(system))


def test_what_was_chosen_stays(system, locked_home, monkeypatch):
    monkeypatch.setenv("STORYTELLER_CACHE", "/chosen")
    monkeypatch.setenv("TRITON_HOME", "/also")
    home.settle_home()
    assert (os.environ["STORYTELLER_CACHE"], os.environ["TRITON_HOME"]) == ("/chosen", "/also")
    assert home.home_notice() is None  # what should last is where the user wants it


@pytest.mark.parametrize("taken_by", ["a link", "a folder that all may write"])
def test_a_name_that_a_stranger_has_taken_is_left_to_him(taken_by, system, tmp_path):
    if taken_by == "a link":
        (tmp_path / "elsewhere").mkdir()
        own(system).symlink_to(tmp_path / "elsewhere")
    else:
        own(system).mkdir()
        own(system).chmod(0o777)
    home.settle_home()
    used = Path(os.environ["HOME"])
    assert used != own(system)
    assert used.parent == system
    assert used.stat().st_mode & 0o777 == 0o700


def test_without_any_folder_it_is_said_what_to_set(system, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(system / "gone"))
    with pytest.raises(UserError, match="set HOME or TMPDIR"):
        home.settle_home()
