"""What holds for every field: it has a meaning, is frozen, and survives a round trip through JSON."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from storyteller_ds.config import RunConfig, load_config, parse_run_config
from storyteller_ds.config.files import preset_names


def fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")


def test_every_field_has_a_meaning():
    names = dict(fields())
    assert len(names) > 60
    assert "moe.top_k" in names  # the walk goes into the sections
    for name, field in names.items():
        assert (field.description or "").strip(), f"{name} has no description"


def test_the_fields_that_documents_name_exist():
    contract = (
        "data.source data.validation data.sequence_length tokenizer.kind tokenizer.vocab_size moe.num_experts "
        "moe.top_k parallel.ep_size train.max_steps train.max_minutes train.global_batch_size "
        "train.eval_every_steps optimizer.kind optimizer.lr schedule.kind checkpoint.every_steps "
        "tracking.wandb seed"
    )
    assert set(contract.split()) <= dict(fields()).keys()


def test_configs_are_frozen_everywhere():
    run = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        run.seed = 1  # type: ignore[misc]
    for name in RunConfig.model_fields:
        section = getattr(run, name)
        if isinstance(section, BaseModel):
            first = next(iter(type(section).model_fields))
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, first, getattr(section, first))
            with pytest.raises(ValidationError):
                type(section).model_validate({"no_such_field": 1})


@pytest.mark.parametrize("preset", preset_names())
def test_a_round_trip_through_json_changes_nothing(preset):
    loaded = load_config(
        preset,
        overrides=[
            "data.cache_dir=/some/where",
            "train.sample_prompts=[one, 'two: three']",
            "parallel.ep_size=1",
            "train.max_minutes=2.5",
            f"seed={2**62}",
            "tracking.run_name=12",
        ],
    )
    dumped = loaded.run.model_dump(mode="json")
    again = parse_run_config(dumped, "config.json")
    assert again == loaded.run
    assert again.model_dump(mode="json") == dumped
    # Negative control: another value is another run.
    dumped["optimizer"]["lr"] *= 2
    assert parse_run_config(dumped, "config.json") != loaded.run
