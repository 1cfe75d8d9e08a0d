"""Any content of a run config or a DeepSpeed JSON gives a valid run, or one line that says what is wrong."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from storyteller_ds.config import LoadedConfig, RunConfig, load_config, parse_run_config
from storyteller_ds.config.deepspeed import read_deepspeed_json, run_values
from storyteller_ds.config.files import parse_yaml, preset_names, read_preset
from storyteller_ds.errors import ConfigError
from tests.support.mutations import VALUES, mutated_bytes, mutated_value, put

REPOSITORY = Path(__file__).parents[2]
SEED = 20250101
PRESETS = [read_preset(name) for name in preset_names()]
PRESET_TEXTS = [path.read_bytes() for path in sorted((REPOSITORY / "storyteller_ds" / "presets").glob("*.yaml"))]
DS_TEXTS = [path.read_bytes() for path in sorted((REPOSITORY / "ds_configs").glob("*.json"))]
DS_CONFIGS = [json.loads(text) for text in DS_TEXTS]
SECTIONS = {
    name: sorted(field.annotation.model_fields) if hasattr(field.annotation, "model_fields") else []
    for name, field in RunConfig.model_fields.items()
}
NAMES = sorted({name for names in SECTIONS.values() for name in names})
WRONG_NAMES = ["lrr", "Model", "max_step", "", "é", "a.b"]


def is_valid(load: Callable[[], object]) -> bool:
    """Whether it was accepted; anything but an acceptable result or a one-line ConfigError is a failure."""
    try:
        result = load()
    except ConfigError as error:
        message = str(error)
        assert message, "an empty message"
        assert message.isprintable(), message
        assert len(message) <= 3010, message
        return False
    run = result.run if isinstance(result, LoadedConfig) else result
    if isinstance(run, RunConfig):
        assert parse_run_config(json.loads(json.dumps(run.model_dump(mode="json"))), "again") == run
    return True


def random_sections(rng: random.Random) -> dict[str, object]:
    """A config with one to three fields set, some of them where they do not belong."""
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


class Cases:
    """Draws one case after another; each is a kind and a function that loads the config."""

    def __init__(self, folder: Path) -> None:
        self.rng = random.Random(SEED)
        self.config, self.ds_config = folder / "run.yaml", folder / "ds.json"
        self.kinds = {
            self.sections: 40,
            self.preset_values: 20,
            self.deepspeed_values: 15,
            self.deepspeed_bytes: 10,
            self.override: 8,
            self.config_bytes: 4,
            self.both_files: 3,
        }

    def draw(self) -> tuple[str, Callable[[], object]]:
        (kind,) = self.rng.choices(list(self.kinds), list(self.kinds.values()))
        return kind.__name__, kind()

    def sections(self) -> Callable[[], object]:
        values = random_sections(self.rng)
        return lambda: parse_run_config(values, "here")

    def preset_values(self) -> Callable[[], object]:
        values = self.rng.choice(PRESETS)
        for _ in range(self.rng.randint(1, 3)):
            values = mutated_value(self.rng, values)
        return lambda: parse_run_config(values, "here") if isinstance(values, dict) else None

    def deepspeed_values(self) -> Callable[[], object]:
        values = self.rng.choice(DS_CONFIGS)
        for _ in range(self.rng.randint(1, 3)):
            values = mutated_value(self.rng, values)
        put(self.ds_config, json.dumps(values).encode())
        return self.read_deepspeed

    def deepspeed_bytes(self) -> Callable[[], object]:
        put(self.ds_config, mutated_bytes(self.rng, self.rng.choice(DS_TEXTS)))
        return self.read_deepspeed

    def read_deepspeed(self) -> object:
        # Like load_config, but without parsing a preset each time.
        from storyteller_ds.config.load import _Layers

        layers = _Layers()
        for field, value in run_values(read_deepspeed_json(self.ds_config)).items():
            layers.set(field, value, "ds.json")
        return layers.validate()

    def override(self) -> Callable[[], object]:
        field = f"{self.rng.choice(list(SECTIONS))}.{self.rng.choice(NAMES)}"
        text = self.rng.choice([json.dumps(value)[:300] for value in VALUES])
        text = mutated_bytes(self.rng, text.encode()).decode("utf-8", "surrogateescape")
        return lambda: parse_run_config({field: parse_yaml(text, field)}, "here")

    def config_bytes(self) -> Callable[[], object]:
        put(self.config, mutated_bytes(self.rng, self.rng.choice(PRESET_TEXTS)))
        return lambda: load_config(str(self.config))

    def both_files(self) -> Callable[[], object]:
        text = json.dumps(random_sections(self.rng)).replace("NaN", ".nan").replace("Infinity", ".inf")  # JSON is YAML
        put(self.config, text.encode())
        self.deepspeed_values()
        return lambda: load_config(str(self.config), ds_config=self.ds_config)


def fuzz(folder: Path, count: int) -> None:
    cases = Cases(folder)
    drawn, valid = Counter[str](), Counter[str]()
    for _ in range(count):
        kind, load = cases.draw()
        drawn[kind] += 1
        valid[kind] += is_valid(load)
    # Controls: every kind was drawn, and both outcomes occur.
    assert len(drawn) == len(cases.kinds)
    for kind in ("sections", "preset_values", "deepspeed_values"):
        assert 0.02 < valid[kind] / drawn[kind] < 0.98, (kind, valid[kind], drawn[kind])


def test_2000_fuzzed_configs_are_valid_or_refused_in_one_line(tmp_path):
    fuzz(tmp_path, 2000)


@pytest.mark.faults
def test_10000_fuzzed_configs_are_valid_or_refused_in_one_line(tmp_path):
    fuzz(tmp_path, 10_000)
