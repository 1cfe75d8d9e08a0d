"""storyteller doctor from the command line: what it finds in real files, what it prints, and what it changes."""

import json
import os
import re
import sys
from collections import Counter

import pytest
from click.testing import CliRunner, Result

from storyteller_ds.cli.main import storyteller
from storyteller_ds.data.corpus import open_corpus, prepare_corpus
from storyteller_ds.errors import UserError
from tests.support.distributed import run_command

STORIES = [f"Story {i}. A {a} {b} met a {c}." for i, (a, b, c) in enumerate(
    (a, b, c) for a in ("red", "blue", "old", "big") for b in ("dog", "cat", "owl", "fox") for c in ("tree", "bird")
)]  # fmt: skip
SMALL = (
    "model.hidden_size=16", "model.num_layers=2", "model.num_heads=2", "model.intermediate_size=16",
    "data.sequence_length=16", "tokenizer.kind=char", "tokenizer.vocab_size=32", "train.global_batch_size=2",
    "train.max_steps=30", "train.eval_every_steps=10", "train.eval_batches=2", "schedule.warmup_steps=3",
    "checkpoint.every_steps=10", "optimizer.lr=0.03", "data.validation_fraction=0.2",
)  # fmt: skip


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(storyteller, ["doctor", *map(str, arguments)], standalone_mode=False)


def findings(*arguments: object) -> list[dict[str, str]]:
    result = doctor("--json", *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    found: list[dict[str, str]] = json.loads(result.stdout)
    assert (result.exit_code == 2) == any(each["severity"] == "error" for each in found)
    return found


@pytest.fixture
def stories(tmp_path, monkeypatch) -> tuple[str, ...]:
    """A healthy run on a file of stories."""
    for name in ("MASTER_PORT", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    (tmp_path / "cache").mkdir()
    text = tmp_path / "stories.txt"
    text.write_text("\n\n".join(STORIES), encoding="utf-8")
    where = (f"data.source={text}", f"data.cache_dir={tmp_path / 'cache'}")
    return ("--output_dir", str(tmp_path / "run"), *SMALL, *where)


def test_nothing_is_said_of_a_healthy_run_and_nothing_is_made(stories, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = doctor(*stories)
    assert result.stdout == "nothing is wrong\n"
    assert not result.return_value
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["quickstart", "gpt2_small"])
def test_presets_are_healthy(name, stories):
    # gpt2_small is meant for a GPU: a small machine has too little memory and would take too long.
    of_machine = ("too_little_memory", "longer_than_a_week")
    assert [each for each in findings("--config", name, *stories[:2]) if each["check"] not in of_machine] == []


PLANTED = [
    (("train.max_stps=3",), "configuration", "max_steps"),
    (("schedule.min_lr_ratio=1.5",), "configuration", ""),
    (("optimizer.lr=fast",), "configuration", ""),
    (("moe.num_experts=2", "moe.top_k=3"), "configuration", "lower top_k"),
    (("train.global_batch_size=7", "train.micro_batch_size=2"), "configuration", "use a multiple of 2"),
    (("parallel.device=mps",), "configuration", "use one of these or auto"),
    (("parallel.zero_stage=2",), "configuration", "--ds_config"),
    (("--config", "quickstrat"), "configuration", "quickstart"),
    (("--ds_config", "zero2_fp61"), "configuration", "zero2_fp16"),
    (("--ds_config", "zero3", "parallel.strategy=stock"), "configuration", "parallel.strategy=local"),
    (("--ds_config", "zero0", "precision.dtype=fp16"), "configuration", "zero2_fp16.json"),
    (("--ds_config", "zero3_nvme", "parallel.nvme_path=/nowhere/at/all"), "engine", "name a folder on a local disk"),
    (("--hostfile", "/nowhere/hosts"), "hostfile", "check the path"),
    (("data.source=/nowhere/stories.txt",), "source", ""),
    (("data.prompt=x",), "source", "remove it"),
    (("data.validation=/nowhere/v.txt",), "source", ""),
    (("tokenizer.path=/nowhere/tokenizer.json",), "tokenizer", "check tokenizer.path"),
    (("tokenizer.kind=llama2c",), "tokenizer", "tokenizer.path=PATH/TO/tokenizer.bin"),
    (("tokenizer.kind=bpe", "tokenizer.vocab_size=100"), "tokenizer", "257"),
    (("train.global_batch_size=4096", "train.eval_every_steps=0"), "text_below_one_step", "more text"),
    (("--world_size", "3", "--ds_config", "zero2"), "configuration", "train.global_batch_size"),
]


@pytest.mark.parametrize(("planted", "check", "fix"), PLANTED, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_found(planted, check, fix, stories):
    found = findings(*stories, *planted)
    (first,) = [each for each in found if each["check"] == check]
    assert (found[0]["severity"], first["severity"]) == ("error", "error")
    assert fix in first["fix"] + first["evidence"]
    assert first["evidence"]


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(stories, tmp_path):
    from storyteller_ds.config import load_config

    run = load_config(overrides=stories[2:]).run
    corpus = open_corpus(run, prepare_corpus(run, lambda line: None))
    (tmp_path / "tokenizer.json").write_text(corpus.tokenizer.to_json())
    given = f"tokenizer.path={tmp_path / 'tokenizer.json'}"
    assert findings(*stories, given) == []
    (found,) = findings(*stories, given, "tokenizer.vocab_size=8")
    assert (found["severity"], found["check"]) == ("error", "tokenizer")
    assert "raise tokenizer.vocab_size to" in found["fix"]


def test_a_prepared_corpus_that_is_damaged_or_too_small(stories, tmp_path):
    from storyteller_ds.config import load_config

    run = load_config(overrides=stories[2:]).run
    key = prepare_corpus(run, lambda line: None)
    assert findings(*stories) == []
    (small,) = findings(*stories, "train.global_batch_size=4096", "train.eval_every_steps=0")
    assert small["severity"] == "error"  # the token counts are exact now
    shard = next((tmp_path / "cache" / key).glob("train*.tokens"))
    shard.write_bytes(shard.read_bytes()[:-2])
    (found,) = findings(*stories)
    assert (found["severity"], found["check"]) == ("warning", "prepared_corpus")
    assert found["fix"] == "the next run makes it again"


def test_another_model_than_that_of_the_run_in_the_folder(stories):
    import storyteller_ds as st

    folder, *settings = stories[1:]
    st.train(overrides=["train.max_steps=1", "train.sample_prompts=[]", *settings[:]], output_dir=folder)
    assert findings(*stories) == []
    (found,) = findings(*stories, "model.hidden_size=32")
    assert (found["severity"], found["check"]) == ("error", "continued")
    assert "model.hidden_size was 16, now 32" in found["evidence"]


def test_characters_that_a_small_vocabulary_leaves_out(stories):
    (found,) = findings(*stories, "tokenizer.vocab_size=12")
    assert (found["severity"], found["check"]) == ("warning", "unknown_tokens")
    # Count characters to find the ten that are kept.
    training = [story for i, story in enumerate(STORIES)]
    counts = Counter("".join(training))
    rare = 1 - sum(count for _, count in counts.most_common(10)) / counts.total()
    assert float(re.search(r"([\d.]+)%", found["evidence"])[1]) / 100 == pytest.approx(rare, abs=0.05)


def test_the_number_of_ranks_comes_from_one_place(stories, tmp_path):
    (tmp_path / "hosts").write_text("a slots=2\n")
    result = doctor(*stories, "--world_size", "2", "--hostfile", str(tmp_path / "hosts"))
    assert isinstance(result.exception, UserError)


def test_validation_on_the_training_text(stories, tmp_path):
    found = findings(*stories, f"data.validation={tmp_path / 'stories.txt'}")
    assert [each["check"] for each in found] == ["validation_in_training"]


def test_the_machine_is_looked_at_though_the_configuration_cannot_be_read(stories, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert [each["check"] for each in findings(*stories, "nonsense")] == ["configuration", "thread_count"]


def test_it_prints_severity_evidence_check_and_fix(stories):
    result = doctor(*stories, "schedule.warmup_steps=30", "optimizer.grad_clip_norm=0")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("warning: the whole run is warm-up")
    assert lines[0].endswith("[only_warm_up]")
    assert lines[1] == "    fix: schedule.warmup_steps=3 would be a tenth"
    assert lines[-1] == "1 warning, 1 note"
    assert not result.return_value


def test_only_with_fix_anything_is_fixed(stories, tmp_path):
    lock = tmp_path / "extensions" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    os.utime(lock, (10**9, 10**9))
    stories = (*stories, f"data.cache_dir={tmp_path / 'missing' / 'cache'}")
    assert {each["check"] for each in findings(*stories)} == {"stale_builds", "cache_to_make"}
    assert lock.exists()
    fixed = findings("--fix", *stories)
    assert {each["fix"] for each in fixed} == {
        f"done: removed {lock}",
        f"done: made {tmp_path / 'missing' / 'cache'}",
    }
    assert not lock.exists()
    assert findings(*stories) == []


def test_hosts_of_a_hostfile_are_asked(stories, tmp_path, monkeypatch):
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho no route >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=1\nb slots=1\n")
    found = [
        each for each in findings("--ds_config", "zero2", "--hostfile", hostfile, *stories) if each["check"] == "hosts"
    ]
    assert [each["evidence"] for each in found] == [f"{h} cannot be reached by ssh (no route)" for h in "ab"]


def test_paths_of_files_hold_no_terminal_commands(stories):
    assert "\x1b" not in doctor(*stories, "data.source=/nowhere/\x1b[31m.txt").stdout


@pytest.mark.parametrize(("setting", "code"), [("seed=1", 0), ("schedule.warmup_steps=900", 0), ("moe.top_k=99", 2)])
def test_the_exit_code_of_the_process(setting, code, tmp_path):
    command = [sys.executable, "-m", "storyteller_ds", "doctor", "--output_dir", str(tmp_path / "run"), setting]
    assert run_command(command, 120).exit_code == code
