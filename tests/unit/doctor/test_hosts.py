"""Hosts that cannot train together, behind a fake ssh."""

import json
import os
import sys
from pathlib import Path

import pytest

from storyteller_ds.doctor import hosts
from storyteller_ds.doctor.hosts import check_hosts
from storyteller_ds.doctor.versions import code_fingerprint, versions_here

SSH = """#!{python}
import json, os, subprocess, sys, time
host, command = sys.argv[-2:]
answer = json.load(open({answers!r})).get(host)
open({asked!r} + host, "w").write(json.dumps(sys.argv[1:]))
if answer == "real":
    sys.exit(subprocess.run(["sh", "-c", command]).returncode)
if answer == "silent":
    time.sleep(60)
if answer == "together":  # nobody answers before all have been asked
    others = [each for each, kind in json.load(open({answers!r})).items() if kind == "together"]
    while not all(os.path.exists({asked!r} + each) for each in others):
        time.sleep(0.01)
    sys.exit(subprocess.run(["sh", "-c", command]).returncode)
if isinstance(answer, dict):
    print("Welcome to " + host)
    print(json.dumps(answer))
    sys.exit(0)
if answer is None:
    print("ssh: Could not resolve hostname " + host, file=sys.stderr)
    sys.exit(255)
print(answer, file=sys.stderr)
sys.exit(1)
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """A function that sets the answer of each host and returns the folder that records what each was asked."""

    def answers(**of: object) -> Path:
        (tmp_path / "answers.json").write_text(json.dumps(of))
        return tmp_path

    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(
        SSH.format(python=sys.executable, answers=str(tmp_path / "answers.json"), asked=str(tmp_path / "asked-"))
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return answers


def test_hosts_with_the_same_code_are_fine_and_asked_all_at_once(ssh):
    folder = ssh(a="together", b="together", c="together")
    assert check_hosts({"a": 1, "b": 1, "c": 2}) == []
    asked = json.loads((folder / "asked-a").read_text())
    assert "BatchMode=yes" in asked  # no password is asked for
    assert str(Path.cwd()) in asked[-1]
    assert sys.executable in asked[-1]


def test_a_host_that_cannot_be_reached(ssh):
    ssh(a="real")
    (finding,) = check_hosts({"a": 1, "worker-9": 1})
    assert finding.severity == "error"
    assert "worker-9 is not known here (ssh: Could not resolve hostname" in finding.evidence
    assert "hostfile" in finding.fix  # a key would not make the name known


def test_a_host_that_does_not_answer(ssh, monkeypatch):
    monkeypatch.setattr(hosts, "_ANSWER_S", 0.3)
    ssh(a="silent")
    (finding,) = check_hosts({"a": 1})
    assert finding.severity == "error"
    assert "a has not answered" in finding.evidence


def test_a_host_without_the_package(ssh):
    ssh(a="No module named storyteller_ds")
    (finding,) = check_hosts({"a": 1})
    assert "does not start on a (No module named storyteller_ds)" in finding.evidence
    assert sys.executable in finding.fix


@pytest.mark.parametrize(
    ("name", "fix"),
    [("torch", "pip install 'torch=="), ("deepspeed", "pip install"), ("python", "use one Python"), ("numpy", "pip")],
)
def test_a_host_with_another_version(ssh, name, fix):
    ssh(a={**versions_here(), name: "0.0.1"})
    (finding,) = check_hosts({"a": 1})
    assert finding.severity == "error"
    assert f"a has {name} 0.0.1, and this machine {versions_here()[name]}" in finding.evidence
    assert fix in finding.fix


def test_a_host_with_other_code(ssh):
    ssh(a={**versions_here(), "storyteller_ds": "abc"})
    (finding,) = check_hosts({"a": 1})
    assert "a has other code" in finding.evidence
    assert "rsync" in finding.fix


@pytest.mark.parametrize("answer", [{}, {"python": ["x"]}])
def test_a_host_that_answers_something_else(ssh, answer):
    ssh(a=answer)
    assert len(check_hosts({"a": 1})) == len(versions_here())


def test_no_ssh_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = check_hosts({"a": 1})
    assert "ssh is not installed" in finding.evidence


def test_the_fingerprint_is_of_names_and_content(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "x.py"
    file.write_text("1")
    first = code_fingerprint(tmp_path)
    (tmp_path / "data.txt").write_text("not code")
    assert code_fingerprint(tmp_path) == first
    file.write_text("2")
    second = code_fingerprint(tmp_path)
    file.rename(tmp_path / "x.py")
    assert len({first, second, code_fingerprint(tmp_path)}) == 3
