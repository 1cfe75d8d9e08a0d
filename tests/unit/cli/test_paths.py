"""`~` in every option, argument and field that takes a path."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from storyteller_ds.cli import main
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.config.deepspeed import with_nvme_path
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import open_corpus, prepare_corpus
from storyteller_ds.errors import UserError

NOT_PATHS = {
    *(
        "include",
        "exclude",
        "master_addr",
        "only",
        "prompt",
        "names",
        "overrides",
        "training",
        "vary",
        "repo",
        "stop",
        "device",
        "drop",
        "rates",
        "special_token",
        "text",
        "language",
        "judge_url",
        "judge_model",
    ),
}
"""String parameters that are not paths."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which is not the current folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


def commands() -> Iterator[click.Command]:
    waiting = [main._load(verb) for verb in main._VERBS]
    while waiting:
        command = waiting.pop()
        yield command
        if isinstance(command, click.Group):
            waiting += command.commands.values()


def test_every_text_that_a_command_takes_is_a_path_for_users_or_none():
    texts = {p.name: p for command in commands() for p in command.params if isinstance(p.type, click.Path)}
    assert texts.keys() >= {"checkpoint", "output", "output_dir", "prompts_file", "ds_config", "hostfile", "config"}
    assert {name for name, parameter in texts.items() if not isinstance(parameter.type, UserPath)} == set()
    plain = {
        p.name for command in commands() for p in command.params if isinstance(p.type, click.types.StringParamType)
    }
    assert plain <= NOT_PATHS


@pytest.mark.parametrize(
    ("given", "meant"), [("~/a b", "home/a b"), ("~", "home"), ("./~", "~"), ("x/../y", "x/../y"), ("auto", "auto")]
)
def test_a_path_is_what_a_shell_would_pass_on(home, given, meant):
    meant = home.parent / meant if meant.startswith("home") else Path(meant)
    assert UserPath().convert(given, None, None) == meant
    word = UserPath(or_word=True).convert(given, None, None)
    assert isinstance(word, str)
    assert Path(word) == meant


def error(*arguments: str) -> str:
    result = CliRunner().invoke(main.storyteller, arguments)
    assert isinstance(result.exception, UserError), result
    return str(result.exception)


def test_in_every_command(home):
    missing = str(home / "missing")
    assert missing in error("generate", "--prompt=x", "--checkpoint=~/missing")
    assert missing in error("generate", "--prompts_file=~/missing", "--checkpoint=x")
    assert f"{missing} does not exist" in error(
        "generate", "--prompts_file=x", "--checkpoint=x", "--output=~/missing/x"
    )
    assert missing in error("checkpoint", "ls", "~/missing")
    assert missing in error("launch", "--hostfile=~/missing")
    assert missing in error("config", "show", "--ds_config=~/missing")
    assert f"{missing} does not exist" in error("certify", "--only=single", "--output=~/missing/x")
    (home / "mine.yaml").write_text("seed: 7")
    assert "seed: 7" in CliRunner().invoke(main.storyteller, ["config", "show", "--config=~/mine.yaml"]).stdout


def test_in_the_fields_of_the_config(home):
    # Both splits are tokenized with this tokenizer and stored in this cache.
    small = {"data": {"builtin_stories": 20}, "tokenizer": {"vocab_size": 300}}
    made = prepare_corpus(RunConfig.model_validate(small | {"data": {**small["data"], "cache_dir": "~/one"}}), print)
    assert list((home / "one").glob(f"{made}*"))
    (home / "one" / made / "tokenizer.json").rename(home / "tokenizer.json")
    run = RunConfig.model_validate(
        {
            "data": {**small["data"], "cache_dir": "~/two"},
            "tokenizer": {"vocab_size": 300, "path": "~/tokenizer.json"},
            "parallel": {"nvme_path": "~/swap"},
        }
    )
    assert open_corpus(run, prepare_corpus(run, print)).tokenizer.vocab_size <= 300
    assert [path.name for path in home.parent.joinpath("work").iterdir()] == []
    for path in ("auto", "~/swap"):
        swapped = with_nvme_path({"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": path}}}, run)
        assert swapped["zero_optimization"]["offload_param"]["nvme_path"] == str(home / "swap")


@pytest.mark.parametrize("or_word", [False, True])
def test_an_empty_path_is_not_the_current_folder(or_word):
    with pytest.raises(click.BadParameter, match="it is empty"):
        UserPath(or_word=or_word).convert("", None, None)
