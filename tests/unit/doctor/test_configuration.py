"""Planted mistakes in settings are found by their checks, with severity and fix; healthy settings give no findings."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from storyteller_ds.config.files import preset_names, preset_text
from storyteller_ds.config.load import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.doctor.examine import ALL, CONFIGURATION, examine, lines_before_a_run
from storyteller_ds.doctor.finding import warning
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.doctor.text_facts import TextFacts
from tests.support.doctored import HEALTHY_TEXT, MadeUp, found_by, subject_of, with_text

ZERO2, ZERO3 = "zero2", "zero3"
OFFLOAD = "zero2_offload"


class Planted(NamedTuple):
    """A mistake, and the finding that it must give."""

    check: str
    severity: str
    fix: str
    settings: tuple[str, ...] = ()
    context: dict[str, Any] = {}  # noqa: RUF012  # never changed
    text: dict[str, Any] = {}  # noqa: RUF012
    evidence: str = ""


T4 = MadeUp(capability=(7, 5), memory=16 * 10**9, half=(torch.float16,))
PLANTED = [
    Planted("only_warm_up", "warning", "schedule.warmup_steps=50", ("schedule.warmup_steps=500",)),
    Planted("only_warm_up", "note", "schedule.warmup_steps=50", ("schedule.warmup_steps=400",), evidence="80%"),
    Planted("longer_than_a_week", "warning", "model.size", ("train.max_steps=100_000",),
            {"machine": MadeUp(rate=1e9)}, evidence="21 days at least"),
    Planted("no_decay", "warning", "schedule.min_lr_ratio", ("schedule.min_lr_ratio=1",)),
    Planted("no_decay", "warning", "schedule.decay_fraction", ("schedule.decay_fraction=1e-3",)),
    Planted("rate_far_off", "warning", "optimizer.lr=0.01", ("optimizer.lr=0.5",), evidence="50 times"),
    Planted("rate_far_off", "warning", "optimizer.lr=0.01", ("optimizer.lr=1e-5",)),
    Planted("tied_rates", "warning", "leave it out",
            ("model.tie_embeddings=true", "optimizer.embedding_lr_ratio=1")),
    Planted("tied_rates", "warning", "optimizer.embedding_lr_ratio=1",
            ("model.tie_embeddings=true", "optimizer.output_lr_ratio=1")),
    Planted("no_clipping", "note", "optimizer.grad_clip_norm=1", ("optimizer.grad_clip_norm=0",)),
    Planted("decayed_to_nothing", "warning", "optimizer.weight_decay=0.1", ("optimizer.weight_decay=100",),
            evidence="to nothing or beyond"),
    Planted("decayed_to_nothing", "warning", "optimizer.weight_decay=0.1", ("optimizer.weight_decay=10",),
            evidence="by 10%"),
    Planted("no_patience", "warning", "validate more often",
            ("train.early_stop_patience=9", "train.eval_every_steps=100")),
    Planted("validates_too_often", "warning", "train.eval_every_steps=60",
            ("train.eval_every_steps=2",), evidence="20 batches"),
    Planted("validates_too_often", "warning", "train.eval_every_steps",
            ("train.eval_batches=null", "train.eval_every_steps=20"), evidence="122 batches"),
    Planted("validates_at_the_end_only", "note", "train.eval_every_steps=100", ("train.eval_every_steps=600",)),
    Planted("samples_too_often", "note", "train.sample_every_steps", ("train.sample_every_steps=2",)),
    Planted("profile_after_the_end", "warning", "train.profile_steps=497-500", ("train.profile_steps=600-603",)),
    Planted("needless_accumulation", "note", "train.micro_batch_size=8", ("train.gradient_accumulation_steps=4",)),
    Planted("watchdog_after_the_collective", "warning", "parallel.timeout_minutes=30",
            ("parallel.timeout_minutes=10",), {"ds_config": ZERO2, "ranks": 2}),
    Planted("no_best", "warning", "validate at steps that are saved",
            ("checkpoint.keep_last=1", "checkpoint.every_steps=200", "train.eval_every_steps=300")),
    Planted("saves_at_the_end_only", "note", "checkpoint.every_steps=50", ("checkpoint.every_steps=900",)),
    Planted("saves_at_the_end_only", "warning", "checkpoint.every_steps=500",
            ("checkpoint.every_steps=0", "train.max_steps=5000")),
    Planted("keeps_nothing_more", "warning", "checkpoint.keep_last=2", ("checkpoint.keep_every_steps=200",)),
    Planted("keeps_nothing_more", "warning", "checkpoint.keep_every_steps=400",
            ("checkpoint.keep_every_steps=300", "checkpoint.keep_last=2"), evidence="only every 600"),
    Planted("disk_too_small", "error", "--output_dir", (), {"machine": MadeUp(free=10**6)}, evidence="1.0 MB are free"),
    Planted("disk_too_small", "warning", "checkpoint.keep_last=2", ("checkpoint.every_steps=10",),
            {"machine": MadeUp(free=10**9)}, evidence="50 checkpoints"),
    Planted("experts_that_are_none", "warning", "moe.top_k=2", ("moe.top_k=8",)),
    Planted("experts_that_are_none", "warning", "moe.balance_loss_coef=0.01", ("moe.balance_loss_coef=0",)),
    Planted("zero3_without_expert_parallelism", "warning", "zero3_autoep.json", (), {"ds_config": ZERO3, "ranks": 2}),
    Planted("slow_format", "warning", "precision.dtype=auto", ("precision.dtype=bf16",),
            {"device": "cuda", "machine": T4}, evidence="compute capability 7.5"),
    Planted("slow_format", "warning", "precision.dtype=auto", ("precision.dtype=bf16",),
            {"machine": MadeUp(half=())}, evidence="bf16 is emulated on this CPU"),
    Planted("slow_format", "warning", "precision.dtype=auto", (),
            {"ds_config": "zero2_fp16", "machine": MadeUp(half=(torch.bfloat16,))}, evidence="fp16 is emulated"),
    Planted("claimed_size", "warning", "3,937,664 total", (), {"config_text": "# a\n# parameters: 5,000,000 total\n"}),
    Planted("claimed_size", "warning", "another model.size", ("model.size=1M", "model.num_layers=30"),
            evidence="model.size=1M"),
    Planted("untrained_positions", "warning", "data.sequence_length=1024",
            ("model.position=learned", "model.context_length=1024"), evidence="768 of the 1,024"),
    Planted("needless_offload", "note", "zero2.json", (), {"ds_config": OFFLOAD}),
    Planted("needless_offload", "warning", "zero2.json", ("precision.dtype=fp32",),
            {"ds_config": OFFLOAD, "device": "cuda", "machine": T4}),
    Planted("too_little_memory", "warning", "train.micro_batch_size=4", (), {"machine": MadeUp(memory=10**8)},
            evidence="optimizer state"),
    Planted("too_little_memory", "warning", "zero3.json", (),
            {"machine": MadeUp(memory=10**8), "ds_config": ZERO2, "ranks": 2}),
    Planted("too_many_passes", "warning", "train.max_steps=39", (), {}, {"sequences": 78}, "51 passes"),
    Planted("too_many_passes", "warning", "more text", (), {},
            {"sequences": None, "train_tokens": 20_000, "is_estimate": True}, "about 51 passes"),
    Planted("sequences_longer_than_stories", "warning", "data.document_mask=true", (), {},
            {"tokens_per_story": 10.0}, "96%"),
    Planted("sequences_longer_than_stories", "warning", "data.packing=best_fit", ("data.packing=pad",), {},
            {"tokens_per_story": 64.0}, "75% of it is padding"),
    Planted("unused_rows", "warning", "tokenizer.vocab_size=300", (), {}, {"vocabulary": 300},
            "1,748 of the 2,048 rows"),
    Planted("vocabulary_larger_than_text", "warning", "tokenizer.vocab_size=300", (), {},
            {"train_tokens": 30_000}, "14.6 for each"),
    Planted("validation_too_small", "warning", "data.validation_fraction", (), {}, {"validation_tokens": 100}),
    Planted("text_below_one_step", "warning", "train.global_batch_size", ("train.global_batch_size=64",), {},
            {"train_tokens": 9000, "is_estimate": True, "sequences": None}, "about 9,000 tokens"),
    Planted("unknown_tokens", "warning", "tokenizer.kind=bpe", (), {}, {"unknown": 0.02}, "2.0%"),
    Planted("foreign_tokenizer", "warning", "tokenizer.path", ("tokenizer.path=x.json",), {},
            {"bytes_per_token": 1.4}, "every 1.4 bytes"),
    Planted("few_inodes", "warning", "df -i", (), {"machine": MadeUp(files=7)}),
    Planted("clock", "warning", "timedatectl", (), {"machine": MadeUp(clock=86_400.0)}, {}, "1970"),
]  # fmt: skip


def planted_in(folder: Path, case: Planted) -> Subject:
    subject = subject_of(folder, *case.settings, **case.context)
    return with_text(subject, **case.text) if case.text else subject


@pytest.mark.parametrize("case", PLANTED, ids=lambda case: f"{case.check}-{case.severity}")
def test_a_planted_mistake_is_found(case, tmp_path):
    finding = found_by(planted_in(tmp_path, case), case.check)
    assert finding is not None
    assert finding.severity == case.severity
    assert case.fix in finding.fix
    assert case.evidence in finding.evidence
    assert finding.repair is None


@pytest.mark.parametrize("check", sorted({case.check for case in PLANTED}))
def test_nothing_is_found_where_nothing_is_wrong(check, tmp_path):
    # The control for each case above, with the same kinds of engine.
    for ds_config, ranks in ((None, 1), (ZERO2, 2)):
        assert found_by(subject_of(tmp_path, ds_config=ds_config, ranks=ranks), check) is None


def test_there_are_enough_of_them():
    assert len(PLANTED) >= 35
    assert {check.__name__ for check in CONFIGURATION} <= {case.check for case in PLANTED}


@pytest.mark.parametrize("case", PLANTED, ids=lambda case: f"{case.check}-{case.severity}")
def test_the_settings_in_a_fix_exist(case, tmp_path):
    finding = found_by(planted_in(tmp_path, case), case.check)
    assert finding is not None
    run = load_config("quickstart").run.model_dump()
    for section, field in re.findall(r"\b([a-z]+)\.([a-z_]+)\b(?!\.json)", finding.fix):
        if section in run:
            assert field in run[section], finding.fix


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("text", [HEALTHY_TEXT, None], ids=["text", "unread"])
def test_no_preset_is_complained_about(name, text, tmp_path):
    loaded = load_config(name)
    if text is not None:  # with as many tokens as the text that the preset names
        tokens = 277 * loaded.run.data.builtin_stories if loaded.run.data.source == "builtin" else 440e6
        text = TextFacts(tokens, 250.0, tokens / 100, loaded.run.tokenizer.vocab_size)
    subject = Subject(
        loaded, make_plan(loaded.run, 1), torch.device("cpu"), tmp_path / "run", text,
        config_text=preset_text(name), machine=MadeUp(),
    )  # fmt: skip
    assert examine(subject, CONFIGURATION) == []
    assert lines_before_a_run(subject) == []


@pytest.mark.parametrize(("name", "is_wrong"), [
    ("stories-4M.yaml", False), ("stories_40m.yaml", True), ("mine.yaml", False), ("run-2.yaml", False),
    ("1B model.yaml", True), ("3.9M.yaml", False),
])  # fmt: skip
def test_a_size_in_the_name_of_a_config_is_a_claim(name, is_wrong, tmp_path):
    path = tmp_path / name
    path.write_text("preset: quickstart\n")
    finding = found_by(subject_of(tmp_path, config=str(path)), "claimed_size")
    assert (finding is not None) == is_wrong
    assert finding is None or "3,937,664" in finding.evidence


@pytest.mark.parametrize(("claim", "is_wrong"), [
    ("3,937,664 total", False), ("3937664", False), ("3,937,665", True), ("3.9M", False), ("40M", False),
])  # fmt: skip
def test_only_a_count_in_full_is_compared_with_the_model(claim, is_wrong, tmp_path):
    subject = subject_of(tmp_path, config_text=f"# mine\n# parameters: {claim}\n")
    assert (found_by(subject, "claimed_size") is not None) == is_wrong


def test_a_vocabulary_that_is_given_cannot_be_made_smaller(tmp_path):
    subject = with_text(subject_of(tmp_path, "tokenizer.path=x.json"), train_tokens=30_000)
    finding = found_by(subject, "vocabulary_larger_than_text")
    assert finding is not None
    assert "vocab_size" not in finding.fix


def test_a_comment_about_a_model_that_the_command_line_changes_claims_nothing(tmp_path):
    subject = subject_of(tmp_path, "model.num_layers=2", config_text=preset_text("quickstart"))
    assert found_by(subject, "claimed_size") is None


def test_what_cannot_be_changed_any_more_is_not_said_to_a_run_that_continues(tmp_path):
    case = next(case for case in PLANTED if case.check == "unused_rows")
    subject = planted_in(tmp_path, case)
    assert lines_before_a_run(subject) != []
    assert lines_before_a_run(subject_of(tmp_path, text=subject.text, is_new=False)) == []


def test_a_check_that_fails_is_a_finding_and_no_traceback(tmp_path):
    def broken(subject: Subject):
        yield warning("seen before", "x")
        raise KeyError("a bug")

    (finding,) = examine(subject_of(tmp_path), (broken,))
    assert (finding.severity, finding.check) == ("warning", "broken")
    assert "failed itself (KeyError: 'a bug')" in finding.evidence


def test_the_worst_comes_first_and_notes_are_not_said_before_a_run(tmp_path):
    subject = subject_of(
        tmp_path, "optimizer.grad_clip_norm=0", "schedule.warmup_steps=500", machine=MadeUp(free=10**6)
    )
    severities = [each.severity for each in examine(subject, ALL)]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    lines = lines_before_a_run(subject)
    assert [line.partition(":")[0] for line in lines] == ["error", "warning"]
