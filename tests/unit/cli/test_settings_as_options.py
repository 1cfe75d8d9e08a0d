"""storyteller train --seed 3: every setting typed as an option is refused with the right way to type it."""

import click
import pytest

from storyteller_ds.cli.main import storyteller
from storyteller_ds.config.explain import sections, settings
from storyteller_ds.errors import EXIT_USER_ERROR, UserError

FIELDS = [setting.name for section in sections() for setting in settings(section)]


def answer(*arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        storyteller.main(["train", *arguments], standalone_mode=False)
    assert refused.value.exit_code == EXIT_USER_ERROR
    return str(refused.value)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_by_either_name(field):
    last = field.rpartition(".")[2]
    assert answer(f"--{field}", "3") == f"--{field} is a setting, not an option; did you mean {field}=3?"
    line = answer("--quiet", f"--{last.replace('_', '-')}=a=b", "seed=1")
    assert line.startswith(f"--{last} is a setting, not an option; did you mean ")
    assert f"{field}=a=b" in line


def test_a_name_in_several_sections_and_a_value_that_is_missing():
    kinds = " or ".join(f"{section}.kind=muon" for section in ("tokenizer", "optimizer", "schedule"))
    assert answer("--kind", "muon").endswith(f"; did you mean {kinds}?")
    assert answer("--seed").endswith("; did you mean seed=VALUE?")


def test_what_is_no_setting_is_an_unknown_option():
    with pytest.raises(click.NoSuchOption, match="--sead"):
        storyteller.main(["train", "--sead", "3"], standalone_mode=False)
