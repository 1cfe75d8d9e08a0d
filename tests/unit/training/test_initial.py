"""Training that begins with the weights of another run: what it takes over, what is new, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import storyteller_ds as st
from storyteller_ds.checkpoint.write import Contents, write_weights
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import empty_decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.training.initial import load_initial_config
from tests.support.runs import read_metrics, read_state
from tests.support.small_runs import SMALLEST

STORIES = [f"There was a dog called Rex {i}. It ran and ran.\n\nThen it slept." for i in range(40)]
OTHERS = [f"A cat named Tom {i} went up a hill to see the sun." for i in range(60)]
SETTINGS = {**SMALLEST, "data.sequence_length": 32, "train.max_steps": 4, "schedule.warmup_steps": 2}
SIZES = {field: value for field, value in SETTINGS.items() if field.startswith(("model.", "tokenizer."))}
STILL = {"optimizer.lr": 1e-30, "train.max_steps": 1}
"""Settings with which nothing is learned."""


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def train(folder: Path, data: list[str] = STORIES, config: str = "tiny_test", **more: Any) -> st.TrainedRun:
    init_from = more.pop("init_from", None)
    settings = SETTINGS if init_from is None else {f: v for f, v in SETTINGS.items() if f not in SIZES}
    return st.train(config, {**settings, **more}, data=data, output_dir=folder, init_from=init_from)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORYTELLER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return train(tmp_path_factory.mktemp("a source") / "run", **{"train.max_steps": 8}).folder


def test_it_begins_where_the_other_run_ended(source, tmp_path):
    before = read_metrics(source)[-1]
    after = read_metrics(train(tmp_path / "run", init_from=source, **STILL).folder)[-1]
    assert after["step"] == 1
    assert after["final_val_loss"] == pytest.approx(before["final_val_loss"], rel=1e-6)
    alone = read_metrics(train(tmp_path / "alone", **STILL).folder)[-1]
    assert alone["final_val_loss"] > before["final_val_loss"] + 0.01


@pytest.mark.parametrize("optimizer", [{}, {"optimizer.kind": "muon", "optimizer.expert_period": 2}])
def test_with_the_weights_that_a_seed_gives_it_is_the_run_of_that_seed(tmp_path, optimizer):
    """Only the weights come from the other run: no moments, step count or random streams."""
    alone = train(tmp_path / "alone", **optimizer)
    loaded = json.loads((alone.folder / "config.json").read_text())
    run = st.RunConfig.model_validate(loaded["run"])
    decoder = empty_decoder(run).to_empty(device="cpu")
    init_parameters(decoder, run.model, run.seed)
    (tmp_path / "initial").mkdir()
    tokenizer = load_tokenizer(alone.folder / "tokenizer.json").to_json()
    write_weights(
        tmp_path / "initial",
        17,
        Contents({}, {"run": loaded["run"]}, tokenizer, "", {"world_size": 1}),
        {placed.name: placed.parameter.detach() for placed in placed_parameters(decoder)},
    )
    again = train(tmp_path / "again", init_from=tmp_path / "initial", **optimizer)
    assert read_metrics(again.folder) == read_metrics(alone.folder)
    ours, theirs = read_state(again.folder, 4), read_state(alone.folder, 4)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_model_and_tokenizer_come_along_and_all_else_is_new(source, tmp_path):
    run = train(tmp_path / "run", OTHERS, "quickstart", init_from=source, **{"train.global_batch_size": 4})
    now, before = (json.loads((folder / "config.json").read_text()) for folder in (run.folder, source))
    for section in ("model", "moe"):
        same = {field for field in now["run"][section] if now["run"][section][field] == before["run"][section][field]}
        assert same >= {"num_layers", "hidden_size"} if section == "model" else {"num_experts", "top_k"}
    assert now["run"]["optimizer"]["kind"] == "muon"
    assert now["init_from"] == str(st.TrainedRun(source, 8).checkpoint)
    assert (run.folder / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()
    st.load(run.folder).generate("A cat", max_new_tokens=3)


def test_no_other_tokenizer_is_advised(source, tmp_path, capsys):
    few = [f"The {number} foxes came home." for number in range(40)]
    for number, more in enumerate(({}, {"init_from": source})):
        train(tmp_path / str(number), few, **more)
        # Control: a run that starts from scratch gets this advice.
        assert ("too few to learn what it means" in capsys.readouterr().err) == (not more)


def test_the_same_call_continues(source, tmp_path):
    half = train(tmp_path / "run", init_from=source, **{"train.max_steps": 2, "checkpoint.every_steps": 2})
    assert half.step == 2
    whole = train(tmp_path / "run", init_from=source)
    assert (whole.step, [record["step"] for record in read_metrics(whole.folder) if "train_loss" in record]) == (
        4,
        [1, 2, 3, 4],
    )


def test_where_it_began_stays_on_record(source, tmp_path, capsys):
    first = st.TrainedRun(source, 8).checkpoint
    for steps, init_from in ((2, source), (3, None), (4, train(tmp_path / "other").folder)):
        settings = {} if init_from else {"tokenizer.path": str(first / "tokenizer.json"), **SIZES}
        more = {"train.max_steps": steps, "init_from": init_from, **settings}
        run = train(tmp_path / "run", **{field: value for field, value in more.items() if value is not None})
        assert json.loads((run.folder / "config.json").read_text())["init_from"] == str(first)
    assert f"--init_from is not read again: this run began with the weights of {first}" in capsys.readouterr().err
    with pytest.raises(st.CheckpointError, match="did not begin with the weights of another run"):
        train(tmp_path / "other", init_from=source)


def test_another_vocabulary_is_refused_by_name(source, tmp_path):
    for change in ({"tokenizer.kind": "bpe"}, {"tokenizer.vocab_size": 99}):
        ((field, value),) = change.items()
        with pytest.raises(st.CheckpointError, match=rf"{field} was \w+, now {value}"):
            train(tmp_path / "run", init_from=source, **change)


def test_an_export_is_to_be_imported_first(source, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(st.CheckpointError, match="storyteller import --from hf --model"):
        train(tmp_path / "run", init_from=tmp_path)


def test_what_the_user_writes_counts_and_a_model_that_does_not_fit_is_refused(source, tmp_path):
    with pytest.raises(st.CheckpointError, match=r"cannot begin with .*: model.num_layers was \d, now 5; leave these"):
        train(tmp_path / "run", init_from=source, **{"model.num_layers": 5})
    with pytest.raises(st.CheckpointError, match=r"cannot begin with .*: the tokenizer is another; leave"):
        train(tmp_path / "run", OTHERS, init_from=source, **{"tokenizer.path": None})
    with pytest.raises(st.CheckpointError, match="no checkpoint at"):
        train(tmp_path / "run", init_from=tmp_path)
    assert not (tmp_path / "run").exists()
    longer = load_initial_config(source, "tiny_test", {"model.context_length": 128, "data.sequence_length": 100})
    assert longer.run.context_length == 128  # rotary positions have no table


def test_without_a_config_the_run_is_named_after_the_other(source):
    assert load_initial_config(source).name == "run-tuned"
    assert load_initial_config(source, "fast_train").name == "fast_train"
