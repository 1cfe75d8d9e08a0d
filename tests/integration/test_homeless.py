"""Training and generating as a user ID without a name or home folder, as in many containers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.distributed import SMALLEST_RUN, Outcome, run_command

NAMELESS = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
"""Runs a command in its own user namespace, which any user may create, with a user ID that has no entry."""


def nameless(home: Path | None, tmp: Path, *arguments: str) -> Outcome:
    """Run a verb in such a namespace, with only these environment variables."""
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "TMPDIR": str(tmp)}
    variables |= {} if home is None else {"HOME": str(home)}
    clean = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
    return run_command([*NAMELESS, *clean, sys.executable, "-m", "storyteller_ds", *arguments], 200)


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if not sys.platform.startswith("linux") or subprocess.run([*NAMELESS, "true"], check=False).returncode:
        pytest.skip("user namespaces cannot be made here")


@pytest.mark.parametrize("kind", ["none", "read-only", "not to be entered"])
def test_a_run_without_a_home(kind: str, tmp_path: Path):
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    home = None
    if kind != "none":
        home = tmp_path / "home"
        home.mkdir(mode=0o555 if kind == "read-only" else 0)
    run = tmp_path / "run"
    tiny = [argument for argument in SMALLEST_RUN if not argument.startswith("tracking.")]
    done = nameless(home, tmp, "train", "--output_dir", str(run), *tiny, "data.builtin_stories=20")
    assert done.exit_code == 0, done.stderr
    assert "Traceback" not in done.stderr
    (notice,) = [line for line in done.stderr.splitlines() if "may not last" in line]
    assert f"caches are in {tmp / 'storyteller_ds-54321'}" in notice
    assert "wandb failed" not in done.stderr
    assert "INFO" not in done.stderr  # printed by wandb's service when it cannot write its own log
    if home is not None:
        home.chmod(0o755)
        assert list(home.iterdir()) == []
    story = nameless(home, tmp, "generate", "--checkpoint", str(run), "--prompt", "a", "--max_new_tokens", "3")
    assert (story.exit_code, story.stdout[:1]) == (0, "a"), story.stderr
    model, ending = story.stderr.splitlines()  # and nothing from libraries that look for a writable folder
    assert model.startswith("model: ")
    assert ending.startswith("3 tokens, ")
