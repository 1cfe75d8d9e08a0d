"""Changed tokenizers and hostfiles are usable or refused in one line."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.distributed.hostfile import check_environment_file, read_hostfile
from storyteller_ds.errors import StorytellerError
from tests.support.mutations import mutated_bytes, mutated_value, put

SEED = 20250104
STORIES = ["Once upon a time there was a dog.", "One day, the dog was happy."]
HOSTS = b"# the machines\nnode-1.site slots=4\n\n10.0.0.2\tslots=2   # older\nnode_3 slots=16\n"
ENVIRONMENT = b"GLOO_SOCKET_IFNAME=eth0\nPATHS=/a/b:/c d\n"


def accepted(read: Callable[[], object]) -> bool:
    try:
        read()
    except StorytellerError:
        return False
    return True


def use_tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(STORIES[0])
    assert all(0 <= i < tokenizer.vocab_size for i in [*ids, tokenizer.end_of_text])
    if tokenizer.vocab_size <= 2**16:  # a larger one is refused by tokenizer.vocab_size
        assert len(tokenizer.token_bytes(tokenizer.vocab_size)) == tokenizer.vocab_size


def fuzz_tokenizer(path: Path, kind: str, count: int) -> None:
    config = TokenizerConfig.model_validate({"kind": kind, "vocab_size": 270})
    rng = random.Random(SEED)
    text = train_tokenizer(config, STORIES).to_json()
    outcomes = []
    for _ in range(count):
        content = mutated_bytes(rng, text.encode())
        if rng.random() < 0.7:
            content = json.dumps(mutated_value(rng, json.loads(text))).encode()
        put(path, content)
        outcomes.append(accepted(lambda: use_tokenizer(path)))
    assert 0.01 < outcomes.count(True) / count < 0.9


@pytest.mark.parametrize("kind", ["char", "bpe", "sentencepiece"])
def test_300_changed_tokenizers_work_or_are_refused(tmp_path, kind):
    fuzz_tokenizer(tmp_path / "tokenizer.json", kind, 300)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_2000_changed_tokenizers_work_or_are_refused(tmp_path, kind):
    fuzz_tokenizer(tmp_path / "tokenizer.json", kind, 2000)


def fuzz_hostfile(path: Path, count: int) -> None:
    rng = random.Random(SEED)
    outcomes = []

    def use() -> None:
        for host, slots in read_hostfile(path).items():
            assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", host)
            assert slots >= 1

    for _ in range(count):
        put(path, mutated_bytes(rng, HOSTS))
        outcomes.append(accepted(use))
        put(path, mutated_bytes(rng, ENVIRONMENT))
        outcomes.append(accepted(lambda: check_environment_file(path)))
        if outcomes[-1]:
            assert not set(path.read_text()) & set("$`;&|<>()'\"\\*?~%!#\0")
    assert 0.05 < outcomes.count(True) / len(outcomes) < 0.95


def test_1000_changed_hostfiles_are_read_or_refused(tmp_path):
    fuzz_hostfile(tmp_path / "hosts", 1000)


@pytest.mark.faults
def test_5000_changed_hostfiles_are_read_or_refused(tmp_path):
    fuzz_hostfile(tmp_path / "hosts", 5000)
