import os

import pytest

from storyteller_ds.errors import UserError
from storyteller_ds.user_paths import expand_home, is_utf8


def test_what_a_shell_would_make_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/a b/c") == tmp_path / "a b" / "c"
    assert expand_home("~") == tmp_path
    assert str(expand_home("a/~/b")) == "a/~/b"
    assert str(expand_home("./~")) == "~"
    assert str(expand_home("~nobody-of-this-name/x")) == "~nobody-of-this-name/x"
    assert str(expand_home("../x")) == "../x"


def test_without_a_home_it_says_so(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: (_ for _ in ()).throw(KeyError(user)))
    with pytest.raises(UserError, match=r"^~/x: .*HOME is not set.*write the whole path"):
        expand_home("~/x")
    assert str(expand_home("/x")) == "/x"


@pytest.mark.parametrize("name", ["x" * 256, "ö" * 128])
def test_a_name_that_no_file_can_have_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"\.\.\.: a name of 256 bytes, .* is it a text in place of a path\?"):
        expand_home(tmp_path / name / "run")
    with pytest.raises(OSError, match="too long"):  # control
        (tmp_path / name).touch()
    (expand_home(tmp_path / name[:-1])).touch()


def test_a_file_system_takes_any_bytes():
    assert is_utf8("Öre \U0001f600")
    assert not is_utf8(os.fsdecode(b"caf\xe9"))
