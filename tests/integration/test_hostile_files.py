"""Hostile files, wherever a file is accepted, are refused in one line without running their code or blocking."""

import hashlib
import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from storyteller_ds.checkpoint.names import MANIFEST
from storyteller_ds.cli.main import run_command, storyteller
from storyteller_ds.untrusted import seal_of
from tests.support.distributed import SMALLEST_RUN

FIRED = "fired"


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, fired: Path) -> None:
        self.fired = fired

    def __reduce__(self):
        return (Path.touch, (self.fired,))


def bombs(fired: Path) -> dict[str, bytes]:
    """The same bomb in every format that a library would open: file name -> content."""
    plain = {f"bomb{protocol}.pkl": pickle.dumps(Bomb(fired), protocol) for protocol in (0, 2, 4, 5)}
    name = fired.with_name("saved")
    torch.save({"weights": Bomb(fired)}, name)
    torch.save({"weights": Bomb(fired)}, old := fired.with_name("old"), _use_new_zipfile_serialization=False)
    return {**plain, "model.pt": name.read_bytes(), "old.bin": old.read_bytes(), "checkpoint.ckpt": plain["bomb2.pkl"]}


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["storyteller", *arguments])
        with pytest.raises(SystemExit) as stop:
            run_command(storyteller)
    return stop.value.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good text, a finished run and the run's cache."""
    home = tmp_path_factory.mktemp("finished")
    (home / "good.txt").write_text("\n\n".join(f"There was a dog called Rex {i}." for i in range(30)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORYTELLER_CACHE", str(home / "cache"))
        assert (
            run(
                "train", "--quiet", *SMALLEST_RUN, f"data.source={home / 'good.txt'}", "--output_dir", str(home / "run")
            )
            == 0
        )
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def places(home: Path, good: Path, file: Path) -> dict[str, list[str]]:
    """Every option and field that takes a file."""
    train = ["train", "--quiet", *SMALLEST_RUN, "--output_dir", str(home / "new")]
    with_text = [*train, f"data.source={good}"]
    return {
        "config": [*train, "--config", str(file)],
        "ds_config": [*train, "--ds_config", str(file)],
        "config show": ["config", "show", "--config", str(file)],
        "source": [*train, f"data.source={file}"],
        "validation": [*with_text, f"data.validation={file}"],
        "tokenizer": [*with_text, f"tokenizer.path={file}"],
        "resume": [*with_text, "--resume", str(file)],
        "checkpoint": ["generate", "--prompt", "x", "--checkpoint", str(file)],
        "hostfile": ["launch", "--hostfile", str(file), "--", "seed=1"],
    }


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("passing over ")]
    assert (out, len(lines)) == ("", 1), err
    assert lines[0].startswith("storyteller: ")
    return lines[0]


@pytest.mark.parametrize("place", places(Path(), Path(), Path()))
def test_a_pickle_bomb_in_every_place_that_takes_a_file(home, finished, capsys, place):
    for name, content in bombs(home / FIRED).items():
        path = home / name
        path.write_bytes(content)
        line = refusal(capsys, *places(home, finished / "good.txt", path)[place])
        assert str(path) in line
        if place not in ("resume", "checkpoint"):  # these expect a folder
            assert "can run code when it is read, is never read" in line
        # Again under a name that does not suggest a pickle.
        path = path.rename(home / "innocent.txt")
        refused = run(*places(home, finished / "good.txt", path)[place]) == 2
        assert refused or (place in ("source", "validation") and name == "bomb0.pkl")  # which is ASCII text
        assert not (home / FIRED).exists()


def test_the_bombs_are_live(home):
    # Control for the test above.
    for name, content in bombs(home / FIRED).items():
        if name.endswith(".pkl"):
            pickle.loads(content)
            assert (home / FIRED).exists(), name
            (home / FIRED).unlink()
    torch.load(home / "saved", weights_only=False)
    assert (home / FIRED).exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("place", places(Path(), Path(), Path()))
def test_a_fifo_or_a_device_in_every_place_that_takes_a_file(home, finished, capsys, place):
    os.mkfifo(home / "fifo")
    for path in (home / "fifo", Path("/dev/zero")):
        refusal(capsys, *places(home, finished / "good.txt", path)[place])


def test_bombs_and_archives_in_a_dataset_folder(home, finished, capsys):
    folder = home / "stories"
    folder.mkdir()
    for name, content in bombs(home / FIRED).items():
        (folder / name).write_bytes(content)
    refusal(capsys, *places(home, finished, folder)["source"])
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.writestr("../../outside.txt", "x")
    refusal(capsys, *places(home, finished, folder)["source"])
    (folder / "train.zip").unlink()
    (folder / "stories.py").write_text(f"import pathlib; pathlib.Path({str(home / FIRED)!r}).touch()")
    refusal(capsys, *places(home, finished, folder)["source"])
    assert not (home / FIRED).exists()


def resealed(step: Path) -> None:
    """Make the manifest agree with the files, as an attacker can."""
    manifest = json.loads((step / MANIFEST).read_text())
    for name in manifest["files"]:
        content = (step / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["seal"] = seal_of(manifest)
    (step / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["weights", "optimizer", "rng", "trainer", "config", "tokenizer", "manifest"])
def test_a_bomb_as_a_file_of_a_checkpoint_whose_manifest_agrees(home, finished, capsys, name):
    for wrapping, content in bombs(home / FIRED).items():
        copy = home / f"run-{wrapping}"
        shutil.copytree(finished / "run", copy)
        (step,) = (copy / "checkpoints").glob("step_*")
        (path,) = step.glob(f"{name}*")
        path.write_bytes(content)
        if name != "manifest":
            resealed(step)
        if name not in ("optimizer", "rng", "trainer"):  # generation does not need these
            refusal(capsys, "generate", "--prompt", "There", "--checkpoint", str(copy))
        more = [f"data.source={finished / 'good.txt'}", "train.max_steps=2", "--output_dir", str(home / "new")]
        if name != "tokenizer":  # the new run has its own
            refusal(capsys, "train", "--quiet", *SMALLEST_RUN, *more, "--resume", str(copy))
        assert not (home / FIRED).exists()


def test_the_checkpoint_is_good_without_the_bomb(home, finished, capsys):
    # Control for the test above, including resealed().
    shutil.copytree(finished / "run", home / "copy")
    (step,) = (home / "copy" / "checkpoints").glob("step_*")
    resealed(step)
    assert run("generate", "--prompt", "There", "--max_new_tokens", "3", "--checkpoint", "copy") == 0
    more = [f"data.source={finished / 'good.txt'}", "train.max_steps=2", "--output_dir", "new", "--resume", "copy"]
    assert run("train", "--quiet", *SMALLEST_RUN, *more) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.md", "config.json", "tokenizer.json", ".lock"])
def test_a_link_in_an_output_folder_is_not_written_through(home, finished, capsys, name):
    (home / "theirs").mkdir()
    (home / "precious").write_text("do not touch")
    (home / "theirs" / name).symlink_to(home / "precious")
    train = ["train", "--quiet", *SMALLEST_RUN, f"data.source={finished / 'good.txt'}", "--output_dir", "theirs"]
    refusal(capsys, *train)
    assert (home / "precious").read_text() == "do not touch"
    (home / "theirs" / name).unlink()
    # A new file is first written to this name; whatever is there is replaced.
    (home / "theirs" / f"{name}.tmp").symlink_to(home / "precious")
    assert run(*train) == 0
    assert (home / "precious").read_text() == "do not touch"
