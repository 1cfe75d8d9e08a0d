"""Faults while one rank of each machine prepares the corpus and the others wait, and in prepared corpora."""

import os
import signal

from tests.support.distributed import wait_until

from .case import END_S, PAIR, SINGLE, Case
from .registry import fault

TAKEN_OVER = "the same command takes over what was prepared and trains the undisturbed run, bit for bit"
KILLED = "killed by signal 9"
TOKENIZING = {"do": "in_corpus", "rank": 0, "reading": 2, "document": 100}
"""At this point the tokenizer is trained and the text half tokenized."""


def _cache(case: Case) -> str:
    return f"data.cache_dir={case.folder / 'cache'}"


def _taken_over(case: Case) -> None:
    """Check that the run left only a work folder, and that the next run takes it over and leaves only the corpus."""
    cache = case.folder / "cache"
    assert len(list(cache.iterdir())) == 1
    assert not case.run_folder.exists()
    case.continues_exactly(PAIR, _cache(case), said=["taking over what is already prepared: tokenizer"])
    (whole,) = cache.iterdir()
    assert (whole / "corpus.json").exists(), whole
    case.saw("only the corpus left")


def _hold(case: Case) -> dict[str, object]:
    return {**TOKENIZING, "reached": str(case.folder / "reached"), "until": str(case.folder / "go")}


def _wait_for_preparation(case: Case, run: object) -> None:
    assert wait_until(lambda: (case.folder / "reached").exists() or run.ended(), END_S)
    assert not run.ended(), run.stderr


@fault("a preparation that takes longer than parallel.timeout_minutes", "shows that it lives; nothing else changes")
def _(case: Case) -> None:
    # The second progress line comes 20 s after the start, and a collective gives up after 12 s.
    run = case.start(PAIR, _cache(case), "parallel.timeout_minutes=0.2", faults=[_hold(case)], quiet=False)
    _wait_for_preparation(case, run)
    assert wait_until(lambda: run.stderr.count("MB so far") >= 2 or run.ended(), END_S)
    assert not run.ended(), run.stderr
    (case.folder / "go").touch()
    case.ended(run, 0)
    case.is_exactly(case.undisturbed(PAIR))


@fault("kill -9 of rank 0 while it prepares the corpus", f"the run ends whole, with one line; {TAKEN_OVER}", quick=True)
def _(case: Case) -> None:
    run = case.train(PAIR, _cache(case), faults=[{**TOKENIZING, "how": "self:SIGKILL"}])
    case.ended(run, None, f"lost rank 0 .* before training: {KILLED}")
    _taken_over(case)


@fault("kill -9 of rank 1 while it waits for the corpus", f"the run ends whole, with one line; {TAKEN_OVER}")
def _(case: Case) -> None:
    run = case.start(PAIR, _cache(case), faults=[_hold(case)])
    _wait_for_preparation(case, run)
    os.kill(run.training(1), signal.SIGKILL)
    case.ended(run, None, f"lost rank 1 .* before training: {KILLED}")
    _taken_over(case)


@fault("SIGTERM to every rank while rank 0 prepares the corpus", f"exit 75, one line; {TAKEN_OVER}", quick=True)
def _(case: Case) -> None:
    run = case.start(PAIR, _cache(case), faults=[_hold(case)])
    _wait_for_preparation(case, run)
    os.kill(run.pid, signal.SIGTERM)
    case.ended(run, 75, "interrupted by SIGTERM while not training")
    _taken_over(case)


@fault("SIGTERM to the rank that waits for the corpus", f"exit 75, one line; {TAKEN_OVER}")
def _(case: Case) -> None:
    run = case.start(PAIR, _cache(case), faults=[_hold(case)])
    _wait_for_preparation(case, run)
    os.kill(run.supervisor(1), signal.SIGTERM)
    case.ended(run, 75, "interrupted by SIGTERM while not training")
    _taken_over(case)


@fault("SIGSTOP of the rank that prepares the corpus", "after the time allowed it is named; exit 3")
def _(case: Case) -> None:
    run = case.train(PAIR, _cache(case), "parallel.timeout_minutes=0.2", faults=[{**TOKENIZING, "how": "self:SIGSTOP"}])
    case.ended(run, 3, r"rank 0 gave no sign of life for 0\.2 min", r"rank 0 on .* is stopped \(SIGSTOP")
    _taken_over(case)


@fault(
    "a corpus that cannot be read, found by the rank that prepares it", "exit 2, one line; nothing is left", quick=True
)
def _(case: Case) -> None:
    text = case.folder / "text.txt"
    text.write_bytes(b"A story.\n\nAnother.\n\n" * 100 + b"\xff")
    case.ended(case.train(PAIR, _cache(case), f"data.source={text}"), 2, r"text\.txt is not UTF-8")
    assert list((case.folder / "cache").iterdir()) == []
    assert not case.run_folder.exists()
    case.saw("nothing left")


DAMAGES = {
    "its index is gone": lambda folder: (folder / "corpus.json").unlink(),
    "a bit of a shard flipped": lambda folder: _flip(folder / "train-00000.tokens"),
    "its tokenizer cut short": lambda folder: os.truncate(folder / "tokenizer.json", 100),
}


def _flip(path: os.PathLike[str]) -> None:
    with open(path, "rb+") as file:  # noqa: PTH123  # any path
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


for _damage in DAMAGES:

    @fault(
        f"a prepared corpus that is damaged: {_damage}",
        "prepared again, with a line that says why; the undisturbed run, bit for bit",
        quick=_damage == "a bit of a shard flipped",
    )
    def _(case: Case, damage: str = _damage) -> None:
        cache = case.folder / "cache"
        assert (
            case.train(SINGLE, _cache(case), "train.max_steps=1", "--output_dir", str(case.folder / "first")).code == 0
        )
        (folder,) = cache.iterdir()
        DAMAGES[damage](folder)
        case.continues_exactly(PAIR, _cache(case), said=["preparing the corpus .* again: "])
        assert list(cache.iterdir()) == [folder]
