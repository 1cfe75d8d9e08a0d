"""storyteller launch: refused arguments, and one real local run."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from storyteller_ds.cli import launch
from storyteller_ds.cli.main import run_command, storyteller
from tests.support import distributed
from tests.support.distributed import DS_CONFIGS, TINY_RUN

GOOD = "a slots=2\nb slots=2\n"
NO_SSH = ("--hostfile", "hosts", "--no_ssh", "--master_addr", "10.0.0.1")


class Became(BaseException):
    """Raised in place of executing the deepspeed command."""


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Run the verb and return the command line that it would execute, or the one line that it prints instead."""
    pytest.importorskip("deepspeed")
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DS_ENV_FILE", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    Path("hosts").write_text(GOOD)

    def become(path: str, arguments: list[str]) -> None:
        assert path == arguments[0] == sys.executable
        raise Became(arguments)

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(launch, "run_launchers", lambda command: become(command[0], command))

    def run(*args: str) -> list[str] | str:
        monkeypatch.setattr(sys, "argv", ["storyteller", "launch", *args])
        with pytest.raises((Became, SystemExit)) as end:
            run_command(storyteller)
        if isinstance(end.value, Became):
            return end.value.args[0]
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (2, ""), err
        (line,) = err.splitlines()
        return line

    return run


def test_a_hostfile_goes_to_deepspeed_as_it_is(launched):
    command = launched("--hostfile", "hosts", "--num-accelerators", "1", "--", "--ds_config", "z.json", "seed=3")
    runner = command.index("deepspeed.launcher.runner")
    module = command.index("--module")
    assert sorted(command[runner + 1 : module - 1]) == ["--hostfile=hosts", "--num_accelerators=1", "--quiet"]
    assert command[module:] == ["--module", "storyteller_ds", "train", "--ds_config", "z.json", "seed=3"]


def test_deepspeed_understands_every_option(launched):
    runner = pytest.importorskip("deepspeed.launcher.runner")
    assert "--node_rank=0" in launched(*NO_SSH, "--node_rank", "0")
    command = launched(*NO_SSH, "--node_rank=1", "--include=a@b:0", "--master_port=1234", "--ssh_port=22", "--", "x=1")
    parsed = runner.parse_args(command[command.index("deepspeed.launcher.runner") + 1 :])
    assert (parsed.hostfile, parsed.no_ssh, parsed.node_rank) == ("hosts", True, 1)
    assert (parsed.include, parsed.master_addr, parsed.master_port) == ("a@b:0", "10.0.0.1", 1234)
    assert (parsed.module, parsed.no_local_rank, parsed.user_script) == (True, True, "storyteller_ds")
    assert parsed.user_args == ["train", "x=1"]
    flags = runner.parse_args(
        launched("-H", "hosts", "--force_multi", "--no_ssh_check", "--num_nodes=1", "-e", "", "--", "x=1")[3:]
    )
    assert (flags.force_multi, flags.no_ssh_check, flags.num_nodes) == (True, True, 1)


def test_a_local_run_gets_a_free_port(launched):
    ports = {part for _ in range(2) for part in launched("--") if part.startswith("--master_port=")}
    assert ports
    assert "--master_port=29500" not in ports
    assert "--master_port=7000" in launched("--master_port", "7000")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--hostfile", "none"), "none does not exist"),
        (("--hostfile", "hosts", "--include", "a@c"), "no host is called 'c'"),
        (("--hostfile", "hosts", "--exclude", "a:2"), "no slot 2"),
        (("--include", "elsewhere"), "no host is called 'elsewhere'; there are: localhost"),
        (("--hostfile", "hosts", "-i", "a", "-e", "b"), "cannot both be given"),
        (("--hostfile", "hosts", "-i", "a", "--num_nodes", "1"), "drop --num_nodes"),
        (("-i", "localhost:0", "--num_gpus", "2"), "(--num_gpus)"),
        (("--hostfile", "hosts", "--master_addr", "-oProxyCommand=x"), "--master_addr: the host"),
        (("--hostfile", "hosts", "--master_addr", "a;b"), "--master_addr: 'a;b'"),
        (("--no_ssh", "--node_rank", "0"), "--no_ssh needs a --hostfile"),
        (NO_SSH, "needs --node_rank, 0 to 1"),
        ((*NO_SSH, "--node_rank", "2"), "needs --node_rank, 0 to 1"),
        ((*NO_SSH[:3], "--node_rank", "0"), "needs --master_addr"),
        (("--hostfile", "hosts", "--node_rank", "0"), "only with --no_ssh"),
        (("--hostfile", "hosts", "--", "a=$(reboot)"), "a remote shell would interpret"),
        (("--master_port", "70000"), "70000"),
        (("--num_accelerators", "0"), "0"),
        (("--hostfiel", "hosts"), "No such option"),
    ],
)
def test_what_deepspeed_would_not_check_is_refused(args, said, launched):
    line = launched(*args)
    assert isinstance(line, str), line
    assert line.startswith("storyteller: ")
    assert said in line


@pytest.mark.parametrize(
    "args",
    [
        "--ds_config z.json seed=1",
        "--num-accelerators 2 --ds-config 'my z.json' --master_port 5",
        "-H hosts --config fast_train -- seed=1",
        "--quiet",
    ],
)
def test_training_arguments_without_the_dashes_are_shown_their_place(args, launched):
    line = launched(*shlex.split(args))
    assert isinstance(line, str)
    option = line.removeprefix("storyteller: ").split()[0]
    assert option.replace("_", "-") in args.replace("_", "-")
    assert line == (
        f"storyteller: {option} is an option of storyteller train, and those come after --: "
        f"storyteller launch [OPTIONS] -- {option} ..."
    )
    assert isinstance(launched("--num_accelerators", "2", "--", option, "x"), list)


@pytest.mark.parametrize(
    ("device", "variables", "accelerator"),
    [
        (None, {}, "cpu"),
        ("nvidiactl", {}, None),
        ("dxg", {}, None),
        ("kfd", {}, None),
        ("nvidiactl", {"CUDA_VISIBLE_DEVICES": ""}, "cpu"),
        ("nvidiactl", {"CUDA_VISIBLE_DEVICES": "1"}, None),
        (None, {"DS_ACCELERATOR": "xpu"}, "xpu"),
    ],
)
def test_deepspeed_is_told_that_there_is_no_gpu(device, variables, accelerator, launched, tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(launch, "_DEVICES", tmp_path / "dev")
    if device is not None:
        (tmp_path / "dev" / device).touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert isinstance(launched("--"), list)
    assert os.environ.get("DS_ACCELERATOR") == accelerator


def test_other_machines_choose_for_themselves(launched):
    assert isinstance(launched("--hostfile", "hosts"), list)
    assert "DS_ACCELERATOR" not in os.environ


def test_the_hostfile_is_checked(launched):
    Path("hosts").write_text("a slots=2\n-oProxyCommand=reboot slots=1\n")
    assert "hosts, line 2: the host '-oProxyCommand=reboot' begins with '-'" in launched("--hostfile", "hosts")


def test_an_environment_file_must_be_asked_for(launched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Path(".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=lo\n")
    line = launched("--hostfile", "hosts")
    assert str(tmp_path / "work" / ".deepspeed_env") in line
    assert "DS_ENV_FILE" in line
    # Without remote hosts nothing is exported.
    assert isinstance(launched(*NO_SSH, "--node_rank", "0"), list)
    assert isinstance(launched(), list)
    monkeypatch.setenv("DS_ENV_FILE", ".deepspeed_env")
    assert isinstance(launched("--hostfile", "hosts"), list)
    Path(".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=lo\nWANDB_API_KEY=abc\n")
    line = launched("--hostfile", "hosts")
    assert ".deepspeed_env, line 2: WANDB_API_KEY looks like a secret" in line
    monkeypatch.setenv("DS_ENV_FILE", "missing")
    assert "DS_ENV_FILE=missing is neither here nor in the home folder" in launched("--hostfile", "hosts")


def test_the_environment_file_of_the_home_folder_is_read_too(launched, tmp_path: Path):
    (tmp_path / "home" / ".deepspeed_env").write_text("HF_TOKEN=abc\n")
    assert "home/.deepspeed_env, line 1: HF_TOKEN looks like a secret" in launched("--hostfile", "hosts")


def test_a_real_local_launch(tmp_path: Path):
    pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "storyteller_ds", "launch", "--num_accelerators", "2", "--"]
    command += ["--ds_config", str(DS_CONFIGS / "zero2.json"), "--output_dir", str(tmp_path), *TINY_RUN]
    outcome = distributed.run_command([*command, "train.max_steps=2", "tracking.wandb=disabled", "--quiet"], 240)
    assert outcome.exit_code == 0, outcome.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 2
    assert json.loads((tmp_path / "config.json").read_text())["topology"]["world_size"] == 2
