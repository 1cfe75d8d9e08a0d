"""storyteller checkpoint ls | verify | show | prune | diff."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from storyteller_ds.checkpoint.diff import _tensor_difference
from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.cli.main import storyteller
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.errors import EXIT_USER_ERROR, CheckpointError
from tests.support.checkpoints import write_checkpoint

RUN = RunConfig.model_validate(
    {
        "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8},
        "data": {"sequence_length": 8},
        "tokenizer": {"vocab_size": 8},
        "parallel": {"device": "cpu"},
    }
)
FASTER = RunConfig.model_validate({**RUN.model_dump(), "optimizer": {"lr": 0.5}})
WEIGHTS = "weights-00000-of-00001.safetensors"


def save(
    checkpoints: Path,
    step: int,
    bpb: float | None,
    run: RunConfig = RUN,
    add: float = 0.0,
    tokens: int | None = None,
) -> None:
    engine = SingleEngine(RUN, World(0, 0, 1, 1), torch.device("cpu"))
    torch.manual_seed(0)
    with torch.no_grad():
        engine.decoder.get_parameter("final_norm.weight").add_(add)
    topology = {"world_size": 1, "ep_size": 1, "zero_stage": None, "device": "cpu"}
    state = {"state": {"step": step, "tokens": 64 * step}, "loss_scale": None}
    write_checkpoint(
        engine,
        checkpoints,
        step,
        Contents(state, {"run": run.model_dump(mode="json")}, "{}", "c", topology, bpb, tokens),
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for step, bpb in ((10, 1.25), (20, 1.5), (30, None)):
        save(folder / "checkpoints", step, bpb)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A run folder with three steps, which a test may change."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step_{number:08d}"


def damage(run: Path, number: int, name: str = WEIGHTS) -> None:
    path = step(run, number) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(storyteller, ["checkpoint", *map(str, arguments)])


def stdout(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.exception
    return result.stdout


def failure(*arguments: object) -> tuple[str, str]:
    """The message, and what was printed before it."""
    result = invoke(*arguments)
    assert isinstance(result.exception, CheckpointError)
    assert result.exception.exit_code == EXIT_USER_ERROR
    assert "\n" not in str(result.exception)
    return str(result.exception), result.stdout


def test_ls_shows_the_steps_newest_first(run):
    lines = stdout("ls", run).splitlines()
    assert [line.split()[0] for line in lines] == ["step", "30", "20", "10"]
    assert lines[3].split()[1] == "1.2500"
    assert lines[1].split()[1] == "-"
    assert all(line.endswith("ok") for line in lines[1:])
    rows = json.loads(stdout("ls", run, "--json"))
    assert [(row["step"], row["val_bpb"], row["problem"]) for row in rows] == [
        (30, None, None),
        (20, 1.5, None),
        (10, 1.25, None),
    ]
    sizes = [path.stat().st_size for path in step(run, 10).iterdir() if path.name != "manifest.json"]
    assert rows[2]["bytes"] == sum(sizes)
    assert json.loads(stdout("ls", run / "checkpoints", "--json")) == rows
    assert json.loads(stdout("ls", step(run, 20), "--json")) == rows[1:2]


def test_ls_tells_scores_of_different_texts_apart(run):
    save(run / "checkpoints", 40, 1.1, tokens=12_345)
    heading, forty, thirty, *_ = stdout("ls", run).splitlines()
    assert heading.split()[:4] == ["step", "val_bpb", "on", "tokens"]
    assert forty.split()[:3] == ["40", "1.1000", "12,345"]
    assert thirty.split()[:3] == ["30", "-", "-"]
    assert all(len(line) <= 80 for line in (heading, forty, thirty))


def test_ls_says_which_steps_cannot_be_used(run):
    (step(run, 20) / WEIGHTS).unlink()
    (step(run, 30) / "manifest.json").write_text("{")
    rows = json.loads(stdout("ls", run, "--json"))
    assert [bool(row["problem"]) for row in rows] == [True, True, False]
    assert WEIGHTS in rows[1]["problem"]
    assert "manifest.json" in stdout("ls", run).splitlines()[1]


def test_verify_of_a_sound_run(run):
    assert [line.rpartition(": ")[2] for line in stdout("verify", run).splitlines()] == ["ok, 6 files"] * 3
    assert all(row["problem"] is None for row in json.loads(stdout("verify", run, "--json")))
    stdout("verify", step(run, 10))


@pytest.mark.parametrize("name", [WEIGHTS, "trainer.json", "tokenizer.json", "rng-00000-of-00001.safetensors"])
def test_verify_names_the_damaged_file(run, name):
    damage(run, 20, name)
    message, printed = failure("verify", run)
    assert name in message
    assert "step_00000020" in message
    assert len(printed.splitlines()) == 3
    stdout("verify", step(run, 10))
    assert name in failure("verify", step(run, 20))[0]
    rows = json.loads(failure("verify", run, "--json")[1])
    assert [bool(row["problem"]) for row in rows] == [False, True, False]


def test_verify_names_a_file_too_many(run):
    (step(run, 10) / "weights-00001-of-00002.safetensors").write_bytes(b"x")
    message, _ = failure("verify", run)
    assert "weights-00001-of-00002.safetensors is not in its manifest.json" in message


def test_verify_counts_the_others(run):
    for number in (10, 20, 30):
        damage(run, number)
    assert "(and 2 more)" in failure("verify", run)[0]


def test_where_there_is_nothing_it_says_so(tmp_path):
    for verb in ("ls", "verify", "show"):
        assert "no checkpoint at" in failure(verb, tmp_path)[0]
        assert "there is no such folder" in failure(verb, tmp_path / "nowhere")[0]
        assert "it is a file" in failure(verb, __file__)[0]


def test_show_of_a_run_is_the_newest_valid_step(run):
    damage(run, 30)
    what = json.loads(stdout("show", run, "--json"))
    assert (what["step"], what["val_bpb"], what["state"]["tokens"]) == (20, 1.5, 1280)
    engine = SingleEngine(RUN, World(0, 0, 1, 1), torch.device("cpu"))
    assert what["parameters"] == sum(parameter.numel() for parameter in engine.decoder.parameters())
    assert what["topology"]["world_size"] == 1
    assert what["run"]["model"]["hidden_size"] == 8
    assert "hidden_size: 8" in stdout("show", run)
    assert json.loads(stdout("show", step(run, 10), "--json"))["step"] == 10


def test_prune_deletes_what_it_says(run):
    planned = json.loads(stdout("prune", run, "--keep_last", 1, "--keep_best", 0, "--dry_run", "--json"))
    assert [Path(path).name for path in planned["deleted"]] == ["step_00000020", "step_00000010"]
    assert all(step(run, number).exists() for number in (10, 20, 30))
    assert "1 deleted" in stdout("prune", run, "--keep-last", 1)  # 10 is the best
    assert [step(run, number).exists() for number in (10, 20, 30)] == [True, False, True]


def test_prune_never_deletes_the_only_valid_step(run):
    damage(run, 30)
    damage(run, 20)
    printed = stdout("prune", run, "--keep_last", 1, "--keep_best", 0)
    assert [step(run, number).exists() for number in (10, 20, 30)] == [True, True, True]
    assert printed.count("left alone, damaged") == 2
    stdout("verify", step(run, 10))


def test_prune_wants_a_run_and_a_number(run):
    assert "is a step folder" in failure("prune", step(run, 10), "--keep_last", 1)[0]
    assert invoke("prune", run).exit_code == 2
    assert invoke("prune", run, "--keep_last", 0).exit_code == 2


def test_diff_of_a_step_with_itself_is_nothing(run):
    what = json.loads(stdout("diff", step(run, 10), step(run, 10), "--json"))
    assert (what["settings"], what["topology"], what["tensors"], what["same_corpus"]) == ({}, {}, [], True)
    assert what["equal"] == json.loads(stdout("show", run, "--json"))["weights"].__len__() * 3


def test_diff_says_how_far_which_tensor_is(run):
    save(run / "other", 40, None, FASTER, add=0.5)
    other = run / "other" / "step_00000040"
    what = json.loads(stdout("diff", step(run, 10), other, "--json"))
    assert what["steps"] == [10, 40]
    assert what["settings"] == {"optimizer.lr": [0.001, 0.5]}
    assert what["tensors"] == [{"name": "final_norm.weight", "max_abs": 0.5, "relative": 0.5, "shapes": [[8], [8]]}]
    assert (what["only_in_a"], what["only_in_b"]) == ([], [])
    text = stdout("diff", step(run, 10), other)
    assert "step: 10 -> 40" in text
    assert "setting optimizer.lr: 0.001 -> 0.5" in text
    assert "final_norm.weight: max abs 5.000e-01, relative 5.000e-01" in text


def test_diff_of_not_a_number_is_json_all_the_same(run):
    save(run / "other", 40, None, add=float("nan"))
    text = stdout("diff", step(run, 10), run / "other" / "step_00000040", "--json")
    what = json.loads(text, parse_constant=pytest.fail)
    assert [one["max_abs"] for one in what["tensors"]] == [None]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([1.0, math.nan], [1.0, math.nan], True),
        ([0.0, 1.0], [-0.0, 1.0], False),
        ([0.0], [-0.0], False),
        ([0.0], [1.0], False),
        ([1.0], [1.0], True),
    ],
)
def test_diff_compares_bits(one, other, same):
    found = _tensor_difference("w", torch.tensor(one), torch.tensor(other))
    assert (found is None) == same
    if one == other and not same:  # 0 and -0
        assert (found.max_abs, found.relative) == (0, 0)


def leave_out(run: Path, number: int, *parts: str) -> None:
    for part in parts:
        (step(run, number) / f"{part}-00000-of-00001.safetensors").unlink()


@pytest.mark.parametrize("parts", [("optimizer", "rng"), ("optimizer",)], ids=str)
def test_weights_alone_are_not_damage(run, parts):
    leave_out(run, 30, *parts)
    assert stdout("ls", run).splitlines()[1].endswith("  weights only")
    rows = json.loads(stdout("ls", run, "--json"))
    assert [(row["weights_only"], row["problem"]) for row in rows] == [(True, None), (False, None), (False, None)]
    there = [path.stat().st_size for path in step(run, 30).iterdir() if path.name[:3] not in ("man", "rng")]
    assert rows[0]["bytes"] == sum(there)
    assert stdout("verify", step(run, 30)).endswith("step_00000030: weights only, 4 files\n")
    assert stdout("verify", run).count("ok, 6 files") == 2
    what = json.loads(stdout("show", run, "--json"))
    assert (what["step"], what["weights_only"], len(what["files"])) == (30, True, 4)
    assert json.loads(stdout("show", step(run, 20), "--json"))["weights_only"] is False
    what = json.loads(stdout("diff", step(run, 30), step(run, 20), "--json"))
    assert (what["tensors"], what["only_in_a"], what["only_in_b"]) == ([], [], [])
    assert what["equal"] == len(json.loads(stdout("show", run, "--json"))["weights"])
    damage(run, 30)
    assert f"{WEIGHTS} is damaged" in failure("verify", run)[0]


def test_a_lost_part_is_damage(run):
    leave_out(run, 30, "rng")
    assert "rng-00000-of-00001.safetensors is missing; use another step" in failure("verify", run)[0]


def test_prune_does_not_count_on_weights_alone(run):
    leave_out(run, 30, "optimizer", "rng")
    leave_out(run, 20, "optimizer", "rng")
    printed = stdout("prune", run, "--keep_last", 1, "--keep_best", 0)
    assert all(step(run, number).exists() for number in (10, 20, 30)), "training could only be continued from 10"
    assert printed.count("left alone, weights only") == 2
    planned = json.loads(stdout("prune", run, "--keep_last", 1, "--dry_run", "--json"))
    assert (planned["damaged"], len(planned["weights_only"])) == ([], 2)


def test_diff_refuses_a_damaged_step(run):
    damage(run, 20)
    assert WEIGHTS in failure("diff", step(run, 10), step(run, 20))[0]
