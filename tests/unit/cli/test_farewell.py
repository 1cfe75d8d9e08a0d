"""The last lines of a finished run: where its files are, and what to type next."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from storyteller_ds.cli.main import storyteller
from tests.support.distributed import SMALLEST_RUN


@pytest.fixture
def farewell(tmp_path, capsys, monkeypatch) -> Callable[..., dict[str, str]]:
    """Train in a folder whose name needs shell quoting; returns the final lines by their labels."""

    def train(*overrides: str) -> dict[str, str]:
        monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "cache"))
        text, output_dir = tmp_path / "good.txt", tmp_path / "my run's $HOME"
        text.write_text("\n\n".join(f"There was a dog called Rex {i}." for i in range(30)))
        capsys.readouterr()
        arguments = ["train", *SMALLEST_RUN, "data.sequence_length=24", f"data.source={text}", *overrides]
        storyteller.main([*arguments, f"--output_dir={output_dir}"], standalone_mode=False)
        lines = capsys.readouterr().out.splitlines()
        return {label: rest.strip() for label, _, rest in (line.partition(":") for line in lines)}

    return train


def test_what_is_named_is_there_and_the_command_runs(farewell, capsys):
    printed = farewell("""train.sample_prompts=["The dog's day"]""")
    assert all(Path(printed[label]).exists() for label in ("metrics", "samples", "checkpoint"))
    program, *arguments = shlex.split(printed["try"])
    assert program == "storyteller"
    storyteller.main(arguments, standalone_mode=False)
    assert capsys.readouterr().out.startswith("The dog's day")


def test_samples_that_are_not_there_are_not_named(farewell):
    assert farewell("train.sample_prompts=[]").keys() == {"metrics", "checkpoint", "try"}
