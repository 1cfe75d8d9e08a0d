"""With every kind of tokenizer, a model trains, resumes, tells stories and starts a new run."""

from pathlib import Path
from typing import Any

import pytest

import storyteller_ds as st
from storyteller_ds.checkpoint import names
from storyteller_ds.data.tokenizers.choose import open_tokenizer
from storyteller_ds.errors import CheckpointError
from tests.support.small_runs import SMALLEST

STORIES = [f"There was a dog called Rex {i}. It ran, and ran to 🐻.\n\nThen </s> was a word." for i in range(40)]
KINDS: dict[str, dict[str, Any]] = {
    "bpe": {"tokenizer.vocab_size": 300, "tokenizer.special_tokens": ["<|im_start|>", "<|im_end|>"]},
    "char": {"tokenizer.vocab_size": 50},
    "sentencepiece": {"tokenizer.vocab_size": 290},
    "gpt2": {"tokenizer.vocab_size": 50257, "tokenizer.path": "data/gpt2"},
    "llama2c": {"tokenizer.vocab_size": 512, "tokenizer.path": "models/tok512.bin"},
}
SETTINGS = {**SMALLEST, "data.sequence_length": 32, "train.max_steps": 3, "schedule.warmup_steps": 1}


def settings_of(kind: str, shared: Path) -> dict[str, Any]:
    own = dict(KINDS[kind])
    if path := own.get("tokenizer.path"):
        own["tokenizer.path"] = str(shared / path)
    return {**SETTINGS, "tokenizer.kind": kind, **own}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_every_kind(kind, shared_folder, tmp_path):
    settings = settings_of(kind, shared_folder)
    run = st.train("tiny_test", settings, data=STORIES, output_dir=tmp_path / "run")
    made = open_tokenizer(run.folder)
    assert made.fingerprint == open_tokenizer(run.checkpoint).fingerprint
    assert made.special_tokens.keys() >= set(settings.get("tokenizer.special_tokens", ()))
    more = st.train("tiny_test", {**settings, "train.max_steps": 4}, data=STORIES, output_dir=tmp_path / "run")
    assert more.metrics[-1]["step"] == 4
    model = st.load(run.folder, device="cpu")
    told = model.generate("There was a <|endoftext|>", temperature=0, max_new_tokens=4, seed=1)
    assert told.startswith("There was a <|endoftext|>") or kind == "char"
    # A new run starts from these weights, whatever its own preset says about tokens.
    settings = {field: value for field, value in settings.items() if not field.startswith(("model.", "tokenizer."))}
    tuned = st.train("tiny_test", settings, data=STORIES, output_dir=tmp_path / "tuned", init_from=run.folder)
    assert open_tokenizer(tuned.folder).fingerprint == made.fingerprint


def test_other_special_tokens_are_another_tokenizer(tmp_path):
    settings = {**SETTINGS, "tokenizer.kind": "bpe", "tokenizer.vocab_size": 300}
    st.train("tiny_test", settings, data=STORIES, output_dir=tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"the corpus or its tokenizer is another \(tokenizer\.special_tokens was"
    ):
        st.train(
            "tiny_test", {**settings, "tokenizer.special_tokens": ["<|a|>"]}, data=STORIES, output_dir=tmp_path / "run"
        )
    assert names.TOKENIZER in [path.name for path in (tmp_path / "run").iterdir()]
