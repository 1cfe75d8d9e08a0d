"""Whatever is written into a config: a valid run, or one line that says what is wrong."""

import json
import random

import pytest

from storyteller_ds.config import LoadedConfig, RunConfig, load_config, parse_run_config
from storyteller_ds.errors import ConfigError

VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    7,
    64,
    2**70,
    -0.5,
    0.5,
    1e-3,
    float("inf"),
    float("nan"),
    "",
    "auto",
    "bpe",
    "cosine",
    "adamw",
    "zzz",
    "a\nb",
    "é" * 100,
    "12",
    "1e-3",
    [],
    [1, "b"],
    ["x"],
    {},
    {"lr": 1},
    {"x": {"y": [1]}},
]
SECTIONS = {
    name: sorted(field.annotation.model_fields) if hasattr(field.annotation, "model_fields") else []
    for name, field in RunConfig.model_fields.items()
}
NAMES = sorted({name for names in SECTIONS.values() for name in names})
WRONG_NAMES = ["lrr", "Model", "max_step", "", "é"]


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


def mutated(rng: random.Random) -> dict[str, object]:
    """A config with one to three fields changed, some of them where they do not belong."""
    values: dict[str, object] = {}
    for _ in range(rng.randint(1, 3)):
        section = rng.choice([*SECTIONS, *WRONG_NAMES]) if rng.random() < 0.1 else rng.choice(list(SECTIONS))
        value = rng.choice(VALUES)
        if not SECTIONS.get(section) or rng.random() < 0.05:
            values[section] = value
            continue
        name = rng.choice(SECTIONS[section])
        if rng.random() < 0.1:
            name = rng.choice([*NAMES, *WRONG_NAMES])
        block = values.setdefault(section, {})
        if isinstance(block, dict):
            block[name] = value
    return values


def test_2000_mutated_configs_are_valid_or_refused_in_one_line(tmp_path):
    rng = random.Random(20250101)
    file, ds = tmp_path / "run.yaml", tmp_path / "ds.json"
    valid = 0
    for case in range(2000):
        values = mutated(rng)
        if case % 4 == 0:  # the slow way: through a YAML file (JSON is YAML), sometimes with a DeepSpeed JSON
            text = json.dumps(values).replace("NaN", ".nan").replace("Infinity", ".inf")
            file.write_text(text, encoding="utf-8")
            ds.write_text(json.dumps({"gradient_clipping": rng.choice(VALUES), "train_batch_size": rng.choice(VALUES)}))
            with_ds = rng.random() < 0.5
            valid += outcome(lambda with_ds=with_ds: load_config(str(file), ds if with_ds else None))
        else:
            valid += outcome(lambda values=values: parse_run_config(values, "here"))
    # Controls: the mutations reach both outcomes often.
    assert 100 < valid < 1900


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
    assert not outcome(lambda: load_config(str(file), ds))
