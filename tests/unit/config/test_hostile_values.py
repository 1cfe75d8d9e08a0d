"""Hostile values and names in a config or on the command line: one line says what is wrong.

For thousands of random ones, see tests/fuzz/test_configs.py.
"""

import pytest

from storyteller_ds.config import LoadedConfig, RunConfig, load_config, parse_run_config
from storyteller_ds.errors import ConfigError


def outcome(load) -> bool:
    """Whether the config is valid; anything but a RunConfig or a one-line ConfigError is an error."""
    try:
        result = load()
    except ConfigError as error:
        message = str(error)
        assert message, "an empty message"
        assert "\n" not in message, message
        assert len(message) < 1000, message
        return False
    run = result.run if isinstance(result, LoadedConfig) else result
    assert isinstance(run, RunConfig)
    assert parse_run_config(run.model_dump(mode="json"), "again") == run
    return True


HOSTILE_TEXT = {
    "impossible date": "2001-99-99",
    "tag that does not fit": "!!int many",
    "object tag": "!!python/object:os.system x",
    "more digits than int() takes": "9" * 5000,
    "list in itself": "&a [*a]",
    "mapping in itself": "&a {b: *a}",
    "half a list": "[1, 2",
    "lone quote": "'",
    "unknown alias": "*nowhere",
    "control character": "\x01",
    "tab": "\t1",
    "two documents": "1\n---\n2",
    "mapping as a key": "{{a: 1}: 2}",
    "nested very deep": "[" * 500 + "]" * 500,
}


@pytest.mark.parametrize("text", HOSTILE_TEXT.values(), ids=HOSTILE_TEXT)
def test_hostile_values_are_refused_in_one_line(text):
    assert not outcome(lambda: load_config(overrides=[f"train.max_steps={text}"]))


@pytest.mark.parametrize(
    "text", ['"a\\nb": 1', 'model: {"a\\nb": 1}', 'preset: "a\\nb"'], ids=["section", "field", "preset"]
)
def test_line_breaks_in_names_do_not_break_the_message(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    assert not outcome(lambda: load_config(str(file)))


def test_line_breaks_on_the_command_line_do_not_break_the_message():
    assert not outcome(lambda: load_config(overrides=["max_steps\n"]))
    assert not outcome(lambda: load_config("no\nsuch"))


def test_a_section_replaced_by_a_value_beside_a_dotted_key_is_refused(tmp_path):
    file, ds = tmp_path / "run.yaml", tmp_path / "ds.json"
    file.write_text("optimizer.lr: 1e-3\noptimizer: 5\n", encoding="utf-8")
    ds.write_text("{}", encoding="utf-8")
    assert not outcome(lambda: load_config(str(file), ds_config=ds))
