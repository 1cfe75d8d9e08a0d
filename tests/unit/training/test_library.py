"""The library: what its calls return, what a callback gets, and what a run leaves behind in the process."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import storyteller_ds as st
from storyteller_ds.data.given_stories import keep_stories
from storyteller_ds.data.sources.story_ends import MARKER
from storyteller_ds.training import interruption, trainer
from tests.support.runs import read_metrics, read_state
from tests.support.small_runs import SMALLEST

STEPS = 6
STORIES = [f"There was a dog called Rex {i}. It ran and ran.\n\nThen it slept." for i in range(40)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., st.TrainedRun]:
    """A function that trains for a few steps on a few stories."""

    def go(folder: str = "run", *callbacks: st.Callback, **settings: Any) -> st.TrainedRun:
        steps = {"train.max_steps": STEPS, "train.eval_every_steps": 2, "schedule.warmup_steps": 2}
        overrides = {**SMALLEST, **steps, "data.sequence_length": 32, **settings}
        return st.train("tiny_test", overrides, data=STORIES, output_dir=tmp_path / folder, callbacks=callbacks)

    return go


class At(st.Callback):
    """Does something after one step."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step, self.action = step, action

    def on_train(self, record):
        if record["step"] == self.step:
            self.action()


def sends(number: int, times: int = 1) -> Callable[[], None]:
    def send() -> None:
        for _ in range(times):
            signal.raise_signal(number)

    return send


def process() -> dict[str, Any]:
    """State of the process that a run must restore."""
    return {
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "wakeup": signal.set_wakeup_fd(-1),
        "threads": set(threading.enumerate()),
        "torch threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
    }


def test_a_run_gives_its_records_and_its_checkpoint(train, tmp_path):
    run = train()
    assert (run.folder, run.step, run.interrupted) == (tmp_path / "run", STEPS, False)
    assert [record["step"] for record in run.metrics if "train_loss" in record] == list(range(1, STEPS + 1))
    assert run.metrics[-1]["val_bpb"] > 0
    assert run.checkpoint == tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}"
    assert (run.folder / "samples.md").read_text().startswith(f"## Step {STEPS}")


def test_the_same_call_again_has_nothing_to_do_and_a_longer_one_goes_on(train):
    first = train()
    records = first.metrics
    assert train().metrics == records
    longer = train(**{"train.max_steps": STEPS + 2})
    assert longer.step == STEPS + 2
    assert longer.metrics[: len(records)] == records


def test_a_loaded_model_tells_the_story_that_the_command_tells(train, capsys):
    run = train()
    story = st.load(run.folder, "cpu")
    text = story.generate("There was", seed=1, max_new_tokens=8)
    assert text == "".join(story.stream("There was", seed=1, max_new_tokens=8))
    assert text.startswith("There was")
    assert text != story.generate("There was", seed=2, max_new_tokens=8)
    from storyteller_ds.cli.main import storyteller

    capsys.readouterr()
    command = ["generate", "--checkpoint", str(run.checkpoint), "--prompt", "There was", "--seed", "1"]
    storyteller.main([*command, "--max_new_tokens", "8", "--device", "cpu"], standalone_mode=False)
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: st.train("quikstart"), "did you mean 'quickstart'"),
        (lambda: st.train("tiny_test", {"train.max_step": 3}), "the overrides: unknown key 'train.max_step'"),
        (
            lambda: st.train("tiny_test", {"train": {"max_steps": "3"}}),
            "max_steps='3': input should be a valid integer",
        ),
        (lambda: st.train("tiny_test", ds_config="zero4"), "did you mean 'zero"),
        (lambda: st.train("tiny_test", data=[]), "an empty list; give stories"),
        (lambda: st.train("tiny_test", data=[b"a"]), "item 1 of data is a bytes; give a list of texts, or of rows"),
        (lambda: st.train("tiny_test", data=["\ud800"]), "half a character"),
        (lambda: st.train("tiny_test", data={"a": "text"}), "data is of type dict; give a list of stories"),
        (lambda: st.train("tiny_test", data=5), "data is of type int; give a list of stories"),
        (lambda: st.train("tiny_test", output_dir=""), "output_dir is empty; give a path"),
        (lambda: st.train("tiny_test", output_dir=5), "output_dir is of type int; give a path"),
        (lambda: st.train("tiny_test", resume=None), "resume is of type NoneType; give a path"),
        (lambda: st.train("tiny_test", init_from=""), "init_from is empty; give a path"),
        (lambda: st.train("tiny_test", ds_config=5), "ds_config is of type int; give a path"),
        (lambda: st.train("", output_dir="x"), "config is empty; give a path"),
        (lambda: st.train("x" * 300), "a name of 300 bytes, and a file system takes 255"),
        (lambda: st.load_config("tiny_test", 5), "overrides=5: give a dict"),
        (lambda: st.train("tiny_test", callbacks=st.Callback()), "callbacks is of type Callback; give a list"),
        (lambda: st.load(""), "path is empty; give a path"),
        (lambda: st.load(None), "path is of type NoneType; give a path"),
        (lambda: st.load("no_such_folder", device=None), "device is of type NoneType; use auto, cpu"),
        (lambda: st.load("no_such_folder"), "no such folder"),
        (lambda: st.train("tiny_test", {"train.callbacks": ["os:path"]}), "train.callbacks: 'os:path'"),
        (lambda: st.train("tiny_test", {"train.callbacks": ["nothing_there:X"]}), "ModuleNotFoundError"),
        (lambda: st.train("tiny_test", {"train.callbacks": ["nothing"]}), "'nothing' cannot be used as module:Class: "),
    ],
)
def test_errors_are_exceptions_with_one_line(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(st.UserError) as caught:
        call()
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_sampling_setting_is_named(train):
    story = st.load(train().folder, "cpu")
    with pytest.raises(st.UserError, match="there is no setting temprature"):
        story.generate("a", temprature=0.5)
    with pytest.raises(st.UserError, match=r"top_p=2\.0: "):
        story.generate("a", top_p=2.0)


def test_a_callback_gets_every_event(train, tmp_path):
    class Listener(st.Callback):
        def __init__(self):
            self.events = []

        def __getattribute__(self, name):
            if name in EVENTS:
                object.__getattribute__(self, "events").append(name)
            return object.__getattribute__(self, name)

    EVENTS = {name for name in vars(st.Callback) if not name.startswith("_")} - {"acts_after"}  # called only on a GPU
    listener, stopper = Listener(), At(3, sends(signal.SIGINT))
    assert train("run", listener, stopper, **{"train.sample_every_steps": 2}).interrupted
    step = ["on_busy", "on_result", "on_train", "recover"]
    assert listener.events[:6] == ["on_start", *step, "busy_with"]
    assert set(listener.events) == EVENTS
    assert listener.events[-1] == "on_end"
    assert listener.trainer.output_dir == tmp_path / "run"
    assert listener.trainer.world.is_main


def test_a_callback_can_be_named(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_callbacks.py").write_text(
        "import storyteller_ds as st\n\n\nclass Loud(st.Callback):\n    seen = []\n\n"
        "    def on_eval(self, record):\n        self.seen.append(record['step'])\n"
    )
    train(**{"train.callbacks": ["my_callbacks:Loud"]})
    from my_callbacks import Loud  # type: ignore[import-not-found]  # written above

    assert Loud.seen == [2, 4, 6]


@pytest.mark.parametrize("ending", ["done", "interrupted", "stopped", "failed", "refused"])
def test_the_process_is_as_before_and_the_folder_is_free(train, ending):
    def fail() -> None:
        raise RuntimeError("of the user's")

    before = process()
    if ending == "done":
        train()
    elif ending == "interrupted":
        assert train("run", At(3, sends(signal.SIGINT))).interrupted
    elif ending == "stopped":
        with pytest.raises(st.InterruptedAfterSave):
            train("run", At(3, sends(signal.SIGTERM)))
    elif ending == "failed":
        with pytest.raises(RuntimeError, match="of the user's"):
            train("run", At(3, fail))
    else:
        with pytest.raises(st.ConfigError):
            train("run", **{"model.hidden_size": 17})
    assert process() == before
    assert train().step == STEPS  # its lock was released


def test_an_interrupted_run_goes_on_to_the_same_bits(train):
    whole = train("whole")
    part = train("part", At(3, sends(signal.SIGINT)))
    assert (part.step, part.interrupted) == (3, True)
    assert train("part").step == STEPS
    assert read_metrics(part.folder) == [
        record for record in read_metrics(whole.folder) if record["step"] != 3 or "train_loss" in record
    ]
    ours, theirs = read_state(part.folder, STEPS), read_state(whole.folder, STEPS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_second_interrupt_ends_the_run_at_once(train, monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_OF_ONE_EVENT", 0.0)
    before = process()
    with pytest.raises(KeyboardInterrupt):
        train("run", At(3, sends(signal.SIGINT, times=2)))
    assert process() == before
    assert train().step == STEPS


def test_an_interrupt_before_training_is_a_keyboard_interrupt(train, monkeypatch):
    monkeypatch.setattr(trainer, "shared_corpus", lambda *_: signal.raise_signal(signal.SIGINT))
    before = process()
    with pytest.raises(KeyboardInterrupt):
        train()
    assert process() == before


def test_outside_the_main_thread_signals_are_left_alone(train):
    runs: list[st.TrainedRun] = []
    thread = threading.Thread(target=lambda: runs.append(train()))
    thread.start()
    thread.join(120)
    assert [run.step for run in runs] == [STEPS]


def test_a_run_config_alone_is_enough(tmp_path):
    config = st.load_config("tiny_test", {**SMALLEST, "data.builtin_stories": 30, "train.max_steps": 1})
    assert st.Trainer(config.run, tmp_path / "run").fit().step == 1


def test_names_are_those_of_the_list():
    assert set(st.__all__) <= set(dir(st))
    for name in st.__all__:
        assert getattr(st, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = st.tarin


def test_ranks_may_keep_the_same_stories_at_once(tmp_path):
    for number in range(20):
        stories = [f"{STORIES[0]} {number}"] * 200
        with ThreadPoolExecutor(8) as ranks:
            paths = {*ranks.map(lambda _, these=stories: keep_stories(these, tmp_path), range(8))}
        [path] = paths
        assert path.read_text().count("\n") == 200
        assert [each.name for each in path.parent.glob("*.tmp")] == []


def test_a_run_that_was_over_elsewhere_shows_what_is_there(train, tmp_path):
    first = train("a")
    again = st.train(
        "tiny_test",
        {**SMALLEST, "train.max_steps": STEPS, "data.sequence_length": 32},
        data=STORIES,
        output_dir=tmp_path / "b",
        resume=tmp_path / "a",
    )
    assert again.checkpoint == first.checkpoint
    assert again.metrics == first.metrics


def test_a_callback_that_fails_at_the_end_does_not_keep_others_from_theirs(train):
    class Fails(st.Callback):
        def on_end(self, exit_code):
            raise ValueError("at the end")

    ended: list[int] = []

    class Ends(st.Callback):
        def on_end(self, exit_code):
            ended.append(exit_code)

    before = {thread.name for thread in threading.enumerate()}
    with pytest.raises(ValueError, match="at the end"):
        train("run", Fails(), Ends())
    assert ended == [0]
    assert {thread.name for thread in threading.enumerate()} == before  # the watchdog, which comes last, has ended


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (type("Typo", (st.Callback,), {"on_evl": lambda self, record: None})(), "Typo.on_evl; did you mean 'on_eval'?"),
        (st.Callback, "Callback is a class; give an object, Callback()"),
        (object(), "an object of type object is not a storyteller_ds.Callback"),
    ],
)
def test_a_callback_that_would_never_be_called_is_refused(train, callback, words):
    with pytest.raises(st.ConfigError, match=re.escape(words)):
        train("run", callback)


@pytest.mark.parametrize("event", ["on_result", "recover"])
def test_a_callback_that_forgets_to_return_the_state_is_named(train, event):
    forgetful = type("Forgetful", (st.Callback,), {event: lambda self, *given: None})()
    with pytest.raises(st.UserError, match=f"Forgetful.{event} returned None; it has to return the state"):
        train("run", forgetful)


def test_a_story_needs_no_config_and_takes_no_dict(train):
    model = st.load(train().folder, "cpu")
    assert "".join(["a", *model.story("a")]) == model.generate("a")
    with pytest.raises(st.UserError, match="config is of type dict; give a SamplingConfig"):
        model.story("a", {"seed": 1})
    assert re.fullmatch(r"StoryModel\(.*step_\d+, [\d,]+ parameters\)", repr(model))


def test_stories_may_come_one_by_one(train, tmp_path):
    settings = {**SMALLEST, "train.max_steps": STEPS, "data.sequence_length": 32}
    from_list = st.train("tiny_test", settings, data=STORIES, output_dir=tmp_path / "a")
    one_by_one = st.train("tiny_test", settings, data=(story for story in STORIES), output_dir=tmp_path / "b")
    assert [r["train_loss"] for r in one_by_one.metrics if "train_loss" in r] == [
        r["train_loss"] for r in from_list.metrics if "train_loss" in r
    ]


@pytest.mark.parametrize("text", ["", "One story.\n\nAnother one.", "One long story. " * 20])
def test_a_text_is_not_taken_for_a_path(text, tmp_path):
    with pytest.raises(st.DataError, match="give a list of stories"):
        st.train("tiny_test", data=text, output_dir=tmp_path / "run")


def test_overrides_take_what_programs_have(tmp_path):
    given = {"train.max_steps": np.int64(7), "optimizer": {"lr": np.float32(0.5)}, "data.source": tmp_path / "a.txt"}
    run = st.load_config("tiny_test", given).run
    assert (run.train.max_steps, run.optimizer.lr, run.data.source) == (7, 0.5, str(tmp_path / "a.txt"))
    for wrong in ("train.max_steps=7", None):
        with pytest.raises(st.ConfigError, match="give a dict"):
            st.load_config("tiny_test", wrong)


def test_the_config_of_a_run_is_a_config(train):
    run = train(seed=7)
    again = st.load_config(run.folder / "config.json").run
    assert again.model_dump(mode="json") == json.loads((run.folder / "config.json").read_text())["run"]
    assert st.load_config(run.folder / "config.json", {"seed": 8}).run.seed == 8


def test_a_device_that_does_not_exist_is_an_error_of_ours(train):
    folder = train().folder
    with pytest.raises(st.ConfigError, match="device=gpu, but this machine has only"):
        st.load(folder, device="gpu")


def test_rows_in_memory_may_have_prompts_and_a_mark_within_a_story_is_refused(tmp_path):
    rows = [{"genre": "fable", "text": story} for story in STORIES]
    settings = {**SMALLEST, "train.max_steps": 1, "data.prompt": "{genre}: ", "data.sequence_length": 32}
    assert st.train("tiny_test", settings, data=rows, output_dir=tmp_path / "run").step == 1
    with pytest.raises(st.DataError, match="within its text"):
        st.train("tiny_test", SMALLEST, data=[*STORIES, f"A {MARKER} B"], output_dir=tmp_path / "other")


def test_the_report_does_not_wait_for_a_tracker(train, monkeypatch, tmp_path):
    """The report is written before trackers end, since they may wait for a server."""
    reports = []

    class Tracker(st.Callback):
        def on_end(self, exit_code):
            reports.append((tmp_path / "run" / "report.html").exists())

    monkeypatch.setattr(trainer.tracking, "trackers", lambda *_: ([Tracker()], {}))
    train(**{"tracking.report": True})
    assert reports == [True]
