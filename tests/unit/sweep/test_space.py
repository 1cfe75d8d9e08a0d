"""What --vary means: values as on the command line of a run, each combination once; what is refused, in one line."""

import itertools
import json
import random

import optuna
import pytest

from storyteller_ds.config import load_config
from storyteller_ds.errors import ConfigError
from storyteller_ds.sweep.space import Listed, Range, read_space

PIECES = [
    "1e-3",
    "0012",
    "a b",
    "../a..b.txt",
    "null",
    "true",
    '"x, y"',
    "'it''s'",
    "[a, b]",
    '["c", [d, e]]',
    "{f: 1}",
]


def space(*vary: str, overrides: tuple[str, ...] = ()):
    return read_space("tiny_test", vary, overrides)


def pieces_by_hand(text: str) -> list[str]:
    """The pieces between commas outside quotes and brackets, found letter by letter."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        if letter == "," and not quote and not depth:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]


@pytest.mark.parametrize("seed", range(30))
def test_values_are_what_stands_between_the_commas(seed):
    from storyteller_ds.sweep.space import _items

    chance = random.Random(seed)
    chosen = chance.sample(PIECES, chance.randint(1, len(PIECES)))
    text = chance.choice([",", ", ", " ,"]).join(chosen)
    assert list(_items("data.source", text)) == pieces_by_hand(text) == chosen


def test_each_combination_comes_once_and_in_the_order_of_typing():
    varied = space("optimizer.lr=1e-3,2e-3", "moe.top-k=1,2,4", "schedule.kind=cosine,constant")
    combinations = [tuple(values.values()) for values in varied.corners()]
    assert combinations == list(itertools.product(["1e-3", "2e-3"], ["1", "2", "4"], ["cosine", "constant"]))
    for lr, top_k, kind in combinations:
        fields = dict(zip(("optimizer.lr", "moe.top_k", "schedule.kind"), (lr, top_k, kind), strict=True))
        run = varied.load(fields).run
        assert (run.optimizer.lr, run.moe.top_k, run.schedule.kind) == (float(lr), int(top_k), kind)
        # The same as typing them, except that only the newest checkpoint is kept, unless that is typed too.
        typed = load_config("tiny_test", varied.arguments(fields)).run
        assert typed == run.model_copy(update={"checkpoint": typed.checkpoint})
        assert (run.checkpoint.keep_last, run.checkpoint.keep_best) == (1, 0)


def test_values_that_are_possible_only_together_are_possible():
    varied = space("model.hidden_size=100,120", "model.num_heads=5,10", "model.num_kv_heads=5")
    assert len(list(varied.corners())) == 4  # tiny_test has 4 heads


@pytest.mark.parametrize(
    ("vary", "low", "high", "is_log"),
    [
        ("optimizer.lr=1e-4..1e-2", 1e-4, 1e-2, True),
        ("optimizer.lr=1e-3..5e-3", 1e-3, 5e-3, False),
        ("optimizer.weight_decay=0..1", 0.0, 1.0, False),
        ("train.global_batch_size=4..64", 4, 64, True),
        ("schedule.warmup_steps=0..1e2", 0, 100, False),
        ("train.max_minutes=1..20", 1.0, 20.0, True),
    ],
)
def test_a_range_has_the_type_of_its_field(vary, low, high, is_log):
    varied = space(vary)
    assert varied.has_range
    [field] = varied.varied
    assert field == Range(vary.partition("=")[0], low, high)
    assert (type(field.low), field.is_log) == (type(low), is_log)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        text = field.suggest(study.ask())
        value = varied.load({field.field: text}).run.model_dump()
        for name in field.field.split("."):
            value = value[name]
        assert type(value) is type(low)
        assert low <= value <= high
        assert len(text.replace(".", "").lstrip("0").partition("e")[0]) <= 4


def test_rounding_does_not_leave_the_range():
    field = Range("optimizer.beta2", 0.900001, 0.9999999)
    trial = optuna.trial.FixedTrial({"optimizer.beta2": 0.9999999})
    assert field.suggest(trial) == "0.9999999"


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        (["optimizer.lrr=1"], "no setting 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        (["optimizer=1"], "optimizer: it is a section"),
        (["optimizer.lr"], "'optimizer.lr' is not of the form"),
        (["optimizer.lr="], "optimizer.lr: it has no values"),
        (["optimizer.lr=1e-3,,2e-3"], "optimizer.lr=1e-3,,2e-3"),
        (["optimizer.lr=1e-3,a"], "optimizer.lr='a': input should be a valid number"),
        (["optimizer.lr=1e-3,0.001"], "optimizer.lr=1e-3,0.001: a value is given twice"),
        (["optimizer.lr=1e-3,1e-3"], "a value is given twice"),
        (["optimizer.lr=1..1"], "a value is given twice"),
        (["optimizer.lr=1e-2..1e-3"], "the second end must be larger"),
        (["optimizer.lr=0..1e-3"], "optimizer.lr=0: input should be greater than 0"),
        (["optimizer.lr=1", "optimizer.lr=2"], "optimizer.lr is given twice"),
        (["seed=1,2"], "seed is given twice"),
        (["optimizer.kind=1..2"], "input should be 'adamw' or 'muon'"),
        (["parallel.self_test=0..1"], "should be true or false"),
        (["tracking.run_name=1..2"], "its values are not numbers"),
        (["model.hidden_size=128,129"], "129"),
        (["data.source=a.txt,b.txt"], "scored on different texts"),
        (["data.validation=a.txt,b.txt"], "scored on different texts"),
        (["data.split=line,file"], "scored on different texts"),
    ],
)
def test_refusals_name_what_is_wrong(vary, words):
    with pytest.raises(ConfigError) as refused:
        space(*vary, overrides=("seed=3",))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_texts_may_differ_in_training_where_the_validation_text_is_named():
    varied = space("data.source=a.txt,b.txt", overrides=("data.validation=c.txt",))
    assert varied.varied == (Listed("data.source", ("a.txt", "b.txt")),)


def test_what_is_varied_can_be_recorded():
    assert json.loads(json.dumps([each.written for each in space("optimizer.lr=1e-4..1e-2", "seed=1,2").varied])) == [
        "0.0001..0.01",
        "1,2",
    ]
