"""Help appears quickly and describes everything in complete sentences."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from storyteller_ds.cli.group import Group, first_sentence
from storyteller_ds.cli.main import _VERBS, _load, storyteller

HEAVY = ("torch", "numpy", "pydantic", "ruamel.yaml", "rich", "deepspeed", "wandb", "tokenizers", "optuna")


def loaded_by(*arguments: str) -> list[str]:
    """The heavy packages that a command has imported by the time it finishes."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', *[name for name in {HEAVY} if name in sys.modules]))\n"
        f"sys.argv = ['storyteller', *{list(arguments)}]\n"
        "from storyteller_ds.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], [], ["--version"]])
def test_the_list_of_verbs_loads_none_of_them(arguments):
    assert loaded_by(*arguments) == []


@pytest.mark.parametrize(
    "arguments", [["config", "explain", "optimizer.lr"], ["config", "presets"], ["config", "show"]]
)
def test_looking_at_settings_needs_no_torch(arguments):
    loaded = loaded_by(*arguments)
    assert "torch" not in loaded
    assert "pydantic" in loaded  # control: imports are detected


@pytest.mark.parametrize(
    "arguments",
    [*([verb, "--help"] for verb in _VERBS), ["checkpoint", "diff", "--help"], ["checkpoint", "ls", "RUN"]],
    ids=" ".join,
)
def test_help_and_listings_need_no_torch(arguments, run_folder):
    loaded = loaded_by(*(str(run_folder) if each == "RUN" else each for each in arguments))
    assert "torch" not in loaded
    assert "rich" in loaded or "--help" in arguments


def text_of(*arguments: str, columns: int = 80) -> str:
    result = CliRunner().invoke(storyteller, [*arguments, "--help"], catch_exceptions=False, terminal_width=columns)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("group", [[], ["config"], ["checkpoint"]], ids=str)
def test_no_description_is_cut_off(group, columns):
    text = text_of(*group, columns=columns)
    assert "..." not in text.partition("Commands:")[2]
    assert max(map(len, text.splitlines())) <= columns
    command = _load(group[0]) if group else storyteller
    assert isinstance(command, Group)
    words = " ".join(text.partition("Commands:")[2].split())
    for name, each in getattr(command, "commands", {}).items() if group else ((verb, _load(verb)) for verb in _VERBS):
        sentence = first_sentence(each)
        assert sentence.endswith(".")
        assert f"{name} {sentence}" in words


@pytest.mark.parametrize("verb", _VERBS)
def test_the_list_has_the_sentence_of_the_verb_itself(verb):
    assert _VERBS[verb] == first_sentence(_load(verb))
    assert first_sentence(_load(verb)) in " ".join(text_of(verb).split())


def test_groups_of_commands_all_show_whole_sentences():
    for verb in _VERBS:
        command = _load(verb)
        assert isinstance(command, Group) == hasattr(command, "commands"), verb


def test_an_installed_command_has_the_same_help():
    command = [sys.executable, "-m", "storyteller_ds", "--help"]
    env = {**os.environ, "COLUMNS": "80"}  # click leaves two columns empty
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert done.returncode == 0
    assert done.stdout.partition("Options:")[2] == text_of(columns=78).partition("Options:")[2]


def test_a_verb_with_a_typo_is_answered_with_the_right_one():
    error = CliRunner().invoke(storyteller, ["trian", "--seed", "3"]).exception
    assert str(error) == "no verb is called 'trian'; did you mean 'train'?"
