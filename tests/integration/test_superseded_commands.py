"""The commands of the superseded system run in sequence, with the flags from its README."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storyteller_ds.data.builtin import grammar

PROGRAM = "import sys; sys.argv[0] = sys.argv.pop(1); from storyteller_ds.cli.start import superseded; superseded()"
SMALL = (
    *("train.max_steps=2", "train.global_batch_size=2", "data.sequence_length=32", "tracking.wandb=disabled"),
    *("train.sample_prompts=[]", "model.num_layers=1", "parallel.device=cpu"),
)


@pytest.fixture
def run(tmp_path: Path):
    def call(command: str, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *command.split(), *more],
            cwd=tmp_path,
            env={**os.environ, "STORYTELLER_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    return call


def test_from_raw_stories_to_new_ones(run, tmp_path):
    (tmp_path / "data" / "raw").mkdir(parents=True)
    stories = "<|endoftext|>\n".join(grammar.story("train", 0, i) + "\n" for i in range(400))
    (tmp_path / "data" / "raw" / "stories.txt").write_text(stories)
    run("storyteller-preprocess --input_dir data/raw --output_dir data/processed")
    run("storyteller-tokenizer --input_file data/processed/train.txt --output_dir data/tokenizers")
    train = "storyteller-train --config configs/tiny_test.yaml --tokenizer_path data/tokenizers"
    run(f"{train} --output_dir run data.source=data/processed", *SMALL)
    run(f"{train} --output_dir run --resume run data.source=data/processed", *SMALL, "train.max_steps=3")
    (tmp_path / "prompts.txt").write_text("Once upon a time\nOne day\n")
    generate = "storyteller-generate --checkpoint run --max_new_tokens 5"
    assert run(generate, "--prompt", "Once upon a time").stdout.startswith("Once upon a time")
    run(f"{generate} --prompts_file prompts.txt --output stories.txt")
    assert "One day" in (tmp_path / "stories.txt").read_text()


def test_its_pickles_are_refused_in_a_line(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best_model.pt").write_bytes(b"\x80\x02}.")
    done = run("storyteller-generate --checkpoint checkpoints/best_model.pt --prompt Once", code=2)
    (line,) = done.stderr.splitlines()
    assert "best_model.pt: it is a file; give a run folder or a step folder" in line
