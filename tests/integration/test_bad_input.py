"""User errors end with exit code 2 and one line on stderr, and leave nothing behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from storyteller_ds.cli.main import run_command, storyteller
from storyteller_ds.records.run_folder import RunFolder
from tests.support.distributed import SMALLEST_RUN

REPOSITORY = Path(__file__).parents[2]
ZERO2 = REPOSITORY / "ds_configs" / "zero2.json"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with caches and one good text in its parent."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "good.txt").write_text("\n\n".join(f"There was a dog called Rex {i}." for i in range(30)))
    return work


@pytest.fixture
def refused(home, monkeypatch, capsys):
    """Run the command in this process and return the one line that it prints."""

    def run(*args: str) -> str:
        before = everything(home)
        monkeypatch.setattr(sys, "argv", ["storyteller", *args])
        with pytest.raises(SystemExit) as stop:
            run_command(storyteller)
        out, err = capsys.readouterr()
        assert stop.value.code == 2, err
        assert everything(home) == before, "something was left behind"
        assert out == ""
        return only_line(err)

    return run


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def only_line(err: str) -> str:
    progress = re.compile("training a |tokenizing |.*split at blank lines")
    lines = [line for line in err.splitlines() if not progress.match(line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("storyteller: ")
    assert "Traceback" not in err
    return lines[0]


def train(*more: str) -> list[str]:
    return ["train", *SMALLEST_RUN, *more]


def write(home: Path, name: str, content: bytes) -> str:
    path = home.parent / name
    path.write_bytes(content)
    return str(path)


def test_the_good_text_would_train(home, monkeypatch, capsys):
    # Control for everything below: refusals there are due to the mistake under test.
    monkeypatch.setattr(
        sys, "argv", ["storyteller", *train(f"data.source={home.parent / 'good.txt'}", "--output_dir=o")]
    )
    with pytest.raises(SystemExit) as stop:
        run_command(storyteller)
    assert stop.value.code == 0
    assert (home / "o" / "metrics.jsonl").exists()
    capsys.readouterr()


def test_bad_text(home, refused):
    assert "does not exist" in refused(*train("data.source=missing.txt"))
    assert "did you mean" in refused(*train(f"data.source={home.parent / 'goood.txt'}"))
    assert "is empty" in refused(*train(f"data.source={write(home, 'empty.txt', b'')}"))
    assert "has no story; put some in" in refused(*train(f"data.source={write(home, 'blank.txt', b' ' * 9)}"))
    latin = write(home, "latin.txt", "A dog.\n\nA café there.".encode("latin-1"))
    assert "is not UTF-8: byte 0xe9 at position 13;" in refused(*train(f"data.source={latin}"))
    lines = write(home, "lines.txt", b"A dog a cat a cow\n")
    assert "is one document of 6 words" in refused(*train(f"data.source={lines}"))
    rows = write(home, "rows.txt", b'{"text": "A dog."}\n{"text": "A cat.\n{"text": "A cow."}\n')
    assert "rows.txt: line 2 is not JSON: " in refused(*train(f"data.source={rows}"))
    assert "no field 'tale'; set data.text_field to one of: text" in refused(
        *train(f"data.source={rows}", "data.text_field=tale")
    )
    (home.parent / "stories").mkdir()
    good, packed = write(home, "stories/a.txt", b"A dog.\n\nA cat."), write(home, "stories/b.txt", b"\x1f\x8b\x08")
    assert f"{packed} cannot be unpacked" in refused(*train(f"data.source={Path(good).parent}"))


@pytest.mark.skipif(sys.platform == "darwin", reason="a file system there takes only UTF-8")
def test_a_setting_that_is_not_utf_8(home, refused):
    name = home.parent / os.fsdecode(b"caf\xe9.txt")
    name.write_text("A dog.\n\nA cat.")
    line = refused(*train(f"data.source={name}"))
    assert r"caf\udce9.txt' on the command line is not UTF-8" in line
    assert "rename the file" in line


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the folder in use cannot be deleted")
def test_a_current_folder_that_is_gone(home, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    there = tmp_path / "run"
    command = [sys.executable, "-m", "storyteller_ds", *train("--output_dir", str(there))]
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$0" && exec "$@"', str(gone), *command],
        cwd=gone,
        # No empty entry, which would mean the deleted folder.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "the current folder has been deleted; cd to one that is there" in only_line(done.stderr)


def test_a_corpus_smaller_than_a_batch(home, refused):
    line = refused(*train(f"data.source={home.parent / 'good.txt'}", "train.global_batch_size=5000"))
    assert "one batch takes 5000" in line
    assert "lower data.sequence_length or train.global_batch_size" in line


def test_bad_configs(home, refused):
    assert "did you mean 'quickstart'" in refused("train", "--config", "quikstart")
    assert "does not exist" in refused("train", "--config", "none.yaml")
    assert "did you mean 'train.max_steps'" in refused("train", "train.max_step=3")
    assert "did you mean 'train.max_steps'" in refused("config", "show", "model.max_steps=3")
    assert "not of the form section.field=value" in refused("train", "train.max_steps", "3")
    assert "train.max_steps='x'" in refused("train", "train.max_steps=x")
    assert "the command line, train.max_steps" in refused("train", "train.max_steps=[1")
    assert "must divide moe.num_experts=8" in refused(*train("--ds_config", str(ZERO2), "parallel.ep_size=3"))
    assert "does not exist" in refused(*train("--ds_config", "none.json"))
    scheduler = write(home, "ds.json", json.dumps({"scheduler": {}}).encode())
    assert "set schedule.kind" in refused(*train("--ds_config", scheduler))


def test_bad_flags(refused):
    assert "No such option" in refused("train", "--no_such_flag")
    assert "'trane'" in refused("trane")
    assert "Missing option '--checkpoint'" in refused("generate", "--prompt", "x")


def test_bad_generation(home, refused):
    (home / "empty").mkdir()
    base = ("generate", "--prompt", "Once")
    assert "there is no such folder" in refused(*base, "--checkpoint", "nowhere")
    assert "no valid checkpoint" in refused(*base, "--checkpoint", "empty")
    assert "--temperature=-1.0" in refused(*base, "--checkpoint", "empty", "--temperature", "-1")
    assert "--temperature=nan" in refused(*base, "--checkpoint", "empty", "--temperature", "nan")
    assert "not a valid float" in refused(*base, "--checkpoint", "empty", "--temperature", "warm")
    assert "--top_p=2.0" in refused(*base, "--checkpoint", "empty", "--top-p", "2")
    assert "--max_new_tokens=0" in refused(*base, "--checkpoint", "empty", "--max_new_tokens", "0")
    assert "give one of --prompt" in refused("generate", "--checkpoint", "empty")
    assert "only: cpu" in refused(*base, "--checkpoint", "empty", "--device", "mps") or sys.platform == "darwin"


def test_an_unknown_device_is_refused(home, refused):
    (home / "empty").mkdir()
    line = refused("generate", "--prompt", "x", "--checkpoint", "empty", "--device", "gpu")
    assert "cpu" in line


def test_resuming_from_nowhere_leaves_no_folder(home, refused):
    line = refused(*train(f"data.source={home.parent / 'good.txt'}", "--output_dir", "new", "--resume", "nowhere"))
    assert "no checkpoint at nowhere" in line


def test_a_sample_prompt_that_the_model_cannot_hold_is_refused_before_training(home, refused):
    # Samples are written before the last checkpoint: a prompt refused only then would lose the run.
    line = refused(*train(f"data.source={home.parent / 'good.txt'}", "train.sample_prompts=[There was a dog]"))
    assert "train.sample_prompts" in line


def test_a_second_run_in_the_same_folder(home, refused):
    folder = RunFolder(home / "taken")
    line = refused(*train(f"data.source={home.parent / 'good.txt'}", "--output_dir", "taken"))
    assert "another run is writing to taken" in line
    del folder


def test_an_output_folder_that_cannot_be(home, refused):
    (home / "file").write_text("")
    line = refused(*train(f"data.source={home.parent / 'good.txt'}", "--output_dir", "file/run"))
    assert "choose another --output_dir" in line


def test_a_contradicting_environment(monkeypatch, refused):
    monkeypatch.setenv("RANK", "3")
    assert "rank 3 of 1" in refused(*train())
    monkeypatch.setenv("RANK", "zero")
    assert "RANK=zero is not a number" in refused(*train())


@pytest.mark.parametrize("argument", ["data.source=/no\nsuch.txt", "a\nb=1", "--config=a\nb", "--a\nb"])
def test_a_line_break_in_an_argument_is_still_one_line(refused, argument):
    refused(*train(argument))


def test_the_installed_command_says_the_same(home):
    command = [str(Path(sys.executable).parent / "storyteller"), "train", "train.max_step=3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=home, env=dict(os.environ), check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'train.max_steps'" in only_line(done.stderr)
    assert everything(home) == []


def test_the_launch_script_says_the_same(home):
    command = [sys.executable, str(REPOSITORY / "launch" / "train.py"), "--ds_config", str(ZERO2), "parallel.ep_size=3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=home, env=dict(os.environ), check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "parallel.ep_size=3 must divide" in only_line(done.stderr)
    assert everything(home) == []
