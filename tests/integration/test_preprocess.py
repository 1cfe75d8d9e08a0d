"""storyteller preprocess on real texts, and interrupted by a signal or a full disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datatrove.executor import LocalPipelineExecutor

from storyteller_ds.data.cleaning.cluster import CleanFiles, CompareStories
from storyteller_ds.data.cleaning.pipeline import preprocess
from storyteller_ds.data.cleaning.policy import Policy
from tests.faults.disk import small_disk
from tests.unit.data.cleaning.conftest import check_sums, story

COMMAND = [sys.executable, "-m", "storyteller_ds", "preprocess"]


@pytest.mark.parametrize(
    ("name", "boundary", "least", "most"),
    [
        ("grimm.txt", "headings", 62, 62),
        ("bryant-stories.txt", "headings", 52, 54),
        ("tinystories_messy.txt", "line breaks", 470, 500),
        ("tinystories_val.txt", "openings", 900, 1000),
        ("tinystories_train.txt", None, 3600, 3642),
    ],
)
def test_real_files(
    name: str, boundary: str | None, least: int, most: int, shared_folder: Path, tmp_path: Path
) -> None:
    card = preprocess(shared_folder / "data" / name, tmp_path / "out", Policy(), 1, lambda line: None)
    check_sums(card, tmp_path / "out")
    assert least <= sum(each["stories"] for each in card["kept"].values()) <= most
    assert any(boundary in note for note in card["notes"]) if boundary else not card["notes"]
    kept = "".join((tmp_path / "out" / f"{split}.txt").read_text(encoding="utf-8") for split in card["kept"])
    assert "â€" not in kept
    assert "other_language" not in card["dropped"]
    assert name in " ".join(card["license"]) or "bryant" in name


def test_a_folder_of_them(shared_folder: Path, tmp_path: Path) -> None:
    card = preprocess(shared_folder / "data", tmp_path / "out", Policy(), 1, lambda line: None)
    check_sums(card, tmp_path / "out")
    assert card["not_read"] == ["gpt2/gpt2_vocab.json"]
    # The lowercased file contains the beginning of the other one.
    alike = sum(each["stories"] for reason, each in card["dropped"].items() if "duplicate" in reason)
    assert alike > 400


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_same_bytes_as_a_datatrove_pipeline(tasks: int, shared_folder: Path, tmp_path: Path) -> None:
    source = shared_folder / "data"
    preprocess(source, tmp_path / "one", Policy(), 1, lambda line: None)
    stages = [
        LocalPipelineExecutor(
            [step(source, tmp_path / "two", Policy())], count, logging_dir=str(tmp_path / step.__name__)
        )
        for step, count in ((CleanFiles, tasks), (CompareStories, 1))
    ]
    stages[1].depends = stages[0]
    stages[1].run()
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / each).iterdir()} for each in ("one", "two"))
    assert one == two
    assert not (tmp_path / "two.parts").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_by_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    stories = "\n<|endoftext|>\n".join(story(seed) for seed in range(10_000))
    (tmp_path / "a.txt").write_text(stories)
    process = subprocess.Popen(
        [*COMMAND, "--input_dir", "a.txt", "--output_dir", "out", "--processes", "2", "--language", "any"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not any((path / "spool").exists() for path in tmp_path.glob("out.work-*")):
        assert process.poll() is None
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
        subprocess.run(
            [*COMMAND, "--input_dir", "a.txt", "--output_dir", "out", "--language", "any"], cwd=tmp_path, check=True
        )
        check_sums(json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8")), tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "out"]
    else:
        assert process.returncode == 130, error
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(ProcessLookupError):  # no process is left either
        os.killpg(process.pid, 0)


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(story(seed) for seed in range(1000)))
    with small_disk(tmp_path / "disk", 300) as disk:
        done = subprocess.run(
            [*COMMAND, "--input_dir", tmp_path / "a.txt", "--output_dir", disk.path / "out", "--language", "any"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2, done.stderr
        assert "could not be written: No space left on device" in done.stderr.splitlines()[-1]
        assert list(disk.path.iterdir()) == []
