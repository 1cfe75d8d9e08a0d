"""Every malformed hostfile, filter and environment file is refused with the place of the error."""

from pathlib import Path

import pytest

from storyteller_ds.distributed.hostfile import check_arguments, check_environment_file, check_filter, read_hostfile
from storyteller_ds.errors import ConfigError

GOOD = "# the two machines\nnode-1.site slots=4\n\n  10.0.0.2\tslots=2   # the older one\n"


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "hosts"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_good_hostfile(tmp_path: Path):
    # Control for the table below.
    assert read_hostfile(write(tmp_path, GOOD)) == {"node-1.site": 4, "10.0.0.2": 2}


def test_deepspeed_reads_the_same(tmp_path: Path):
    runner = pytest.importorskip("deepspeed.launcher.runner")
    assert dict(runner.fetch_hostfile(str(write(tmp_path, GOOD)))) == read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("-oProxyCommand=touch${IFS}x slots=1", 1, "begins with '-'"),
        ("a slots=1\n-F slots=1", 2, "begins with '-'"),
        ("a;reboot slots=1", 1, "not a host name"),
        ("$(reboot) slots=1", 1, "not a host name"),
        ("a`id` slots=1", 1, "not a host name"),
        ("a|b slots=1", 1, "not a host name"),
        ("a&b slots=1", 1, "not a host name"),
        ("a>b slots=1", 1, "not a host name"),
        ("a'b slots=1", 1, "not a host name"),
        ('"a" slots=1', 1, "not a host name"),
        ("a\\b slots=1", 1, "not a host name"),
        ("a,b slots=1", 1, "not a host name"),  # two hosts for pdsh, one for DeepSpeed
        ("n[1-3] slots=1", 1, "not a host name"),  # three hosts for pdsh, one for DeepSpeed
        ("user@a slots=1", 1, "not a host name"),
        ("a:22 slots=1", 1, "not a host name"),
        ("%h slots=1", 1, "not a host name"),
        ("a/b slots=1", 1, "not a host name"),
        ("a. slots=1", 1, "not a host name"),
        ("kühl slots=1", 1, "not a host name"),
        ("a" * 254 + " slots=1", 1, "not a host name"),
        ("a\x00b slots=1", 1, "not a host name"),
        ("a slots=1\na slots=2", 2, "already in line 1"),
        ("a slots=1\n\nA slots=2", 3, "already in line 1"),
        ("a slots=0", 1, "slots=0 is not a number"),
        ("a slots=-1", 1, "slots=-1 is not a number"),
        ("a slots=two", 1, "slots=two is not a number"),
        ("a slots=1.5", 1, "slots=1.5 is not a number"),
        ("a slots=4x", 1, "slots=4x is not a number"),
        ("a slots=²", 1, "is not a number"),
        ("a slots=", 1, "not of the form"),
        ("a", 1, "not of the form"),
        ("# c\na 4", 2, "not of the form"),
        ("a slots=4 b slots=2", 1, "not of the form"),
        ("a slots=4 max_slots=8", 1, "not of the form"),
        ("a slots =4", 1, "not of the form"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(text, line, message, tmp_path: Path):
    with pytest.raises(ConfigError) as refused:
        read_hostfile(write(tmp_path, text))
    assert f"hosts, line {line}: " in str(refused.value)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "\n \n", "# only this\n"])
def test_an_empty_hostfile_is_refused(text, tmp_path: Path):
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(write(tmp_path, text))


def test_an_unreadable_hostfile_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_hostfile(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path)
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_hostfile(write(tmp_path, b"\xff slots=1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c", "no host is called 'c'; there are: a, b"),
        ("a@c:0", "no host is called 'c'"),
        ("a@", "no host is called ''"),
        ("a:2", "no slot 2, its slots are 0 to 1"),
        ("a:0,x", "'x' is not the number"),
        ("a:", "'' is not the number"),
        ("a:-1", "'-1' is not the number"),
        ("a:0:1", "'0:1' is not the number"),
    ],
)
def test_a_bad_filter_is_refused(text, message):
    with pytest.raises(ConfigError) as refused:
        check_filter(text, "--include", {"a": 2, "b": 4})
    assert message in str(refused.value)
    assert f"--include={text}" in str(refused.value)


def test_a_good_filter():
    check_filter("a:0,1@b", "--include", {"a": 2, "b": 4})
    check_filter("localhost:7", "--exclude", {"localhost": None})


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("A=1\nB", 2, "NAME=VALUE"),
        ("A=1\n\nB=2", 2, "NAME=VALUE"),  # DeepSpeed fails on blank lines
        ("A;reboot=1", 1, "NAME=VALUE"),
        ("1A=1", 1, "NAME=VALUE"),
        ("WANDB_API_KEY=abc", 1, "looks like a secret"),
        ("HF_TOKEN=abc", 1, "looks like a secret"),
        ("my_secret=abc", 1, "looks like a secret"),
        ("A=1\nDB_PASSWORD=abc", 2, "looks like a secret"),
        ("A=$(reboot)", 1, "would interpret '$'"),
        ("A=`id`", 1, "would interpret '`'"),
        ('A=x"; reboot', 1, "would interpret"),
        ("A=%n", 1, "would interpret '%'"),
    ],
)
def test_a_bad_environment_file_is_refused(text, line, message, tmp_path: Path):
    with pytest.raises(ConfigError) as refused:
        check_environment_file(write(tmp_path, text))
    assert f"hosts, line {line}: " in str(refused.value)
    assert message in str(refused.value)
    assert "abc" not in str(refused.value)  # a secret is not repeated


def test_a_good_environment_file(tmp_path: Path):
    check_environment_file(write(tmp_path, "GLOO_SOCKET_IFNAME=eth0\nPATHS=/a/b:/c d\n"))


@pytest.mark.parametrize(
    "argument", ["a;b", "$HOME", "`id`", "a&", "a|b", "a>b", "(a)", "'a'", '"a"', "a\nb", "*", "~/x"]
)
def test_an_argument_that_a_remote_shell_would_change_is_refused(argument):
    with pytest.raises(ConfigError, match="remote shell"):
        check_arguments(["--ds_config", argument])
    check_arguments(["--ds_config", "ds_configs/zero2.json", "train.sample_prompts=[Once upon a time]", "a=-1e-3"])
