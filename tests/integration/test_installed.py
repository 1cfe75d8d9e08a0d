"""The package without its repository: built, installed into an empty folder, and used from another folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.distributed import REPOSITORY, run_command

LINES = """
import storyteller_ds as st
run = st.train("tiny_test", {"data.builtin_stories": 60, "train.max_steps": 2, "train.sample_tokens": 4,
               "data.sequence_length": 32, "tracking.wandb": "disabled"}, ds_config=DS_CONFIG, output_dir="runs/nb")
print(st.__file__)
print(run.step, run.checkpoint.is_dir())
print(st.load("runs/nb", "cpu").generate("Once upon a time", max_new_tokens=5))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel and nothing else from this repository."""
    folder = tmp_path_factory.mktemp("installed")
    offline = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    copy = folder / "source"  # built from a copy, since building leaves folders behind
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in files.stdout.split("\0")[:-1]:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_symlink():
            target.symlink_to(os.readlink(REPOSITORY / name))  # noqa: PTH115  # the target as recorded in git
        else:
            target.write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(copy)], check=True, timeout=120
    )
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(folder / "site"), str(wheel)], check=True, timeout=120)
    return folder / "site"


def test_the_tests_and_the_benchmarks_stay_at_home(site):
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {
        "bin",
        "storyteller_ds",
        "storyteller_kernels",
    }
    assert (site / "storyteller_ds" / "py.typed").exists()


@pytest.mark.parametrize("ds_config", [None, "zero2"])
def test_the_library_trains_and_tells_from_any_folder(site, tmp_path, ds_config):
    script = tmp_path / "train.py"
    script.write_text(LINES.replace("DS_CONFIG", repr(ds_config)), encoding="utf-8")
    env = {"PYTHONPATH": str(site), "STORYTELLER_CACHE": str(tmp_path / "cache")}
    done = run_command(["env", "-C", str(tmp_path), sys.executable, str(script)], 240, env)
    assert done.exit_code == 0, done.stderr
    file, run, *story = done.stdout.splitlines()
    assert Path(file).is_relative_to(site)
    assert run == "2 True"
    assert story[0].startswith("Once upon a time")


def test_presets_and_deepspeed_configs_are_found_by_name(site, tmp_path):
    env = {"PYTHONPATH": str(site)}
    command = ["env", "-C", str(tmp_path), sys.executable, "-m", "storyteller_ds", "config"]
    assert "fast_train" in run_command([*command, "presets"], 120, env).stdout
    shown = run_command([*command, "show", "--config", "fast_train", "--ds_config", "zero3"], 120, env)
    assert (shown.exit_code, "zero_stage: 3" in shown.stdout) == (0, True), shown


TYPED = """
from pathlib import Path
import storyteller_ds as st

class Loud(st.Callback):
    def on_eval(self, record: st.Record) -> None:
        print(record["val_loss"], self.trainer.output_dir)

settings = {"train.max_steps": 2}
run: st.TrainedRun = st.train("quickstart", settings, output_dir=Path("x"), data=["a", "b"], callbacks=[Loud()])
folder: Path | None = run.checkpoint
text: str = st.load("x").generate("Once", temperature=0.8)
"""


@pytest.mark.parametrize(("code", "problems"), [(TYPED, 0), (TYPED.replace("st.train(", "st.tarin("), 1)])
def test_a_type_checker_knows_the_public_names(site, tmp_path, code, problems):
    script = tmp_path / "typed.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path)]
    done = run_command([*command, str(script)], 240, {"MYPYPATH": str(site)})
    assert done.exit_code == problems, done.stdout
    assert ('has no attribute "tarin"' in done.stdout) == bool(problems), done.stdout
