"""All of `storyteller preprocess`: its cards add up, its splits do not leak, and it writes all or nothing."""

import json
import random
import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from storyteller_ds.cli.main import storyteller
from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.cleaning import card as card_module
from storyteller_ds.data.cleaning import output as output_module
from storyteller_ds.data.cleaning import pipeline
from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.shingles import jaccard, shingles_of, words_of
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.errors import DataError, UserError
from tests.unit.data.cleaning.conftest import Cleaner, check_sums, sentences, stories_in, story

MARK = "\n<|endoftext|>\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of two files: 300 stories, duplicates, near-duplicates, and texts dropped for other reasons."""
    folder = tmp_path / "in"
    folder.mkdir()
    stories = [story(seed) for seed in range(300)]
    rng = random.Random(1)
    stories += [each.upper() for each in stories[:20]]
    stories += [f"{each} {sentences(rng, 1)[0]}" for each in stories[20:40]]
    stories += ["Too short.", story(900) + " and then", "- " * 100 + ".", "a" * 40_000 + "."]
    rng.shuffle(stories)
    (folder / "one.txt").write_text(MARK.join(stories[:200]), encoding="utf-8")
    (folder / "two.txt").write_text(MARK.join(stories[200:]), encoding="utf-8")
    (folder / "LICENSE").write_text("Public domain\nand more\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(storyteller, [*map(str, arguments)])


def test_every_story_is_accounted_for(corpus: Path, tmp_path: Path, cleaned: Cleaner) -> None:
    card = cleaned(corpus)
    assert {name: each["stories"] for name, each in card["dropped"].items() if "leak" not in name} == {
        "exact_duplicate": 20,
        "near_duplicate": card["dropped"]["near_duplicate"]["stories"],
        "no_words": 1,
        "too_long": 1,
        "too_short": 1,
        "unfinished": 1,
    }
    near = sum(each["stories"] for name, each in card["dropped"].items() if name in ("near_duplicate", "near_leak"))
    assert near == 20
    assert card["license"] == ["LICENSE: Public domain"]
    assert card["inputs"][0]["stories"] == 200
    page = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert "Too short." in page
    assert f"| **read** | **{card['read']['stories']:,}** |" in page


def test_counts_that_do_not_add_up_end_it(corpus: Path, tmp_path: Path, cleaned: Cleaner, monkeypatch) -> None:
    # Negative control for the sum above: a story is lost along the way.
    real = output_module.write_splits
    monkeypatch.setattr(
        output_module, "write_splits", lambda *a: [each._replace(stories=each.stories - 1) for each in real(*a)]
    )
    with pytest.raises(AssertionError, match="read 344 stories"):
        cleaned(corpus)
    assert not (tmp_path / "out").exists()


def test_no_pair_across_splits_is_alike(corpus: Path, tmp_path: Path, cleaned: Cleaner) -> None:
    cleaned(corpus, validation_fraction=0.3, test_fraction=0.3)
    splits = [
        shingles_of([words_of(each) for each in stories_in(tmp_path / "out" / f"{name}.txt")])
        for name in ("train", "validation", "test")
    ]
    for i, one in enumerate(splits):
        assert len(one) > 50
        for other in splits[i + 1 :]:
            assert max(jaccard(a, b) for a, b in product(one, other)) < 0.5


def test_a_leak_between_given_splits_is_found(tmp_path: Path, cleaned: Cleaner) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    train, validation, test = ([story(seed) for seed in range(start, start + 30)] for start in (0, 100, 200))
    near = f"{train[3]} {sentences(random.Random(1), 1)[0]}"
    leaking = {"train": train, "validation": [*validation, train[0].upper()], "test": [*test, near, validation[5]]}
    for name, stories in leaking.items():
        (folder / f"{name}.txt").write_text(MARK.join(stories), encoding="utf-8")
    card = cleaned(folder, splitting="given")
    # The later split keeps its stories, so that a score on them is meaningful.
    assert {name: each["stories"] for name, each in card["dropped"].items()} == {"exact_leak": 2, "near_leak": 1}
    assert {name: each["stories"] for name, each in card["kept"].items()} == {"train": 28, "validation": 30, "test": 32}
    assert train[3] not in stories_in(tmp_path / "out" / "train.txt")
    assert "in test" in card["dropped"]["near_leak"]["examples"][0]


def test_a_file_that_is_named_for_no_split(corpus: Path, cleaned: Cleaner) -> None:
    with pytest.raises(DataError, match="named for splits"):
        cleaned(corpus, splitting="given")


def test_training_reads_what_was_written(corpus: Path, tmp_path: Path, cleaned: Cleaner) -> None:
    cleaned(corpus)
    sources = choose_sources(DataConfig(source=str(tmp_path / "out")))
    for name, source in (("train", sources.train), ("validation", sources.validation)):
        assert list(source.documents()) == stories_in(tmp_path / "out" / f"{name}.txt") != []
    assert any(line.startswith("not read:") and "card" in line for line in sources.remarks())


def test_a_story_stays_in_its_split_when_the_corpus_is_reordered_or_grows(tmp_path: Path, cleaned: Cleaner) -> None:
    places = []
    for name, seeds in (("a", range(200)), ("b", range(199, -1, -1)), ("c", range(400))):
        (tmp_path / f"{name}.txt").write_text(MARK.join(map(story, seeds)), encoding="utf-8")
        cleaned(tmp_path / f"{name}.txt", tmp_path / f"out-{name}")
        files = {
            split: stories_in(tmp_path / f"out-{name}" / f"{split}.txt") for split in ("train", "validation", "test")
        }
        places.append({each: split for split, stories in files.items() for each in stories})
    assert places[0] == places[1]
    assert places[0].items() < places[2].items()


def test_the_same_bytes_with_any_number_of_processes(
    corpus: Path, tmp_path: Path, cleaned: Cleaner, monkeypatch
) -> None:
    monkeypatch.setattr("storyteller_ds.data.cleaning.workers.BATCH_CHARACTERS", 30_000)
    cleaned(corpus, tmp_path / "one")
    cleaned(corpus, tmp_path / "three", processes=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert {"train.txt", "validation.txt", "test.txt", "card.md", "card.json"} <= contents(tmp_path / "one").keys()


def test_a_marker_within_a_story_is_text(tmp_path: Path, cleaned: Cleaner, monkeypatch) -> None:
    # JSON Lines can contain the marker; it must not cut the story in two when the output is read again.
    (tmp_path / "a.txt").write_text(story(1))
    told = f"{story(2)} <|endoftext|> {story(3)}"
    monkeypatch.setattr(pipeline.Input, "stories", lambda *arguments: iter([told]))
    cleaned(tmp_path / "a.txt", validation_fraction=0, test_fraction=0)
    assert stories_in(tmp_path / "out" / "train.txt") == [told.replace("<|endoftext|>", "<| endoftext |>")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n \n", "no story stays of 0"),
        (b"a fox \xff ran. " * 20, "not UTF-8: byte 0xff at position 6"),
        (b"a fox \0 ran. " * 20, "NUL bytes"),
        (b"Short.", "no story stays of 1"),
        (b"%PDF-1.7 a", "is PDF"),
    ],
)
def test_what_cannot_be_cleaned(content: bytes, message: str, tmp_path: Path, cleaned: Cleaner) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        cleaned(tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_one_long_line(tmp_path: Path, cleaned: Cleaner) -> None:
    (tmp_path / "a.txt").write_text(" ".join(story(seed, 300) for seed in range(60)))
    card = cleaned(tmp_path / "a.txt")
    assert card["repaired"]["cut"]["stories"] == 1
    assert card["read"]["stories"] > 30


def test_another_language_and_none(tmp_path: Path, cleaned: Cleaner) -> None:
    german = "Es war einmal ein kleines Mädchen, das hatte jedermann lieb, der sie nur ansah. " * 3
    english = "One day the fox and the owl went to the river, and they were happy there all day long. " * 3
    (tmp_path / "a.txt").write_text(MARK.join([german, english]), encoding="utf-8")
    card = cleaned(tmp_path / "a.txt", language="en", validation_fraction=0, test_fraction=0)
    assert card["dropped"]["other_language"]["stories"] == 1
    assert stories_in(tmp_path / "out" / "train.txt") == [english.strip()]
    card = cleaned(tmp_path / "a.txt", tmp_path / "de", language="de", validation_fraction=0, test_fraction=0)
    assert stories_in(tmp_path / "de" / "train.txt") == [german.strip()]
    with pytest.raises(DataError, match="--language klingon is not known"):
        cleaned(tmp_path / "a.txt", tmp_path / "no", language="klingon")


def test_a_full_folder_is_refused_and_an_empty_one_taken(corpus: Path, tmp_path: Path, cleaned: Cleaner) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        cleaned(corpus)
    assert contents(out) == {"mine": b"mine"}
    (out / "mine").unlink()
    cleaned(corpus)
    with pytest.raises(UserError, match="would be read by the next run"):
        cleaned(corpus, corpus / "out")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), DataError("bad")])
@pytest.mark.parametrize("where", ["clean_into", "finish", "write_card"])
def test_an_end_half_way_leaves_nothing(
    error: BaseException, where: str, corpus: Path, tmp_path: Path, cleaned: Cleaner, monkeypatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    owner = {"clean_into": pipeline.Reading, "finish": pipeline, "write_card": card_module}[where]
    monkeypatch.setattr(owner, where, fail)
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="No space left" if expected is UserError else None):
        cleaned(corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_second_of_two_processes_on_one_folder(corpus: Path, tmp_path: Path, cleaned: Cleaner, monkeypatch) -> None:
    real = card_module.write_card

    def meanwhile(*arguments: object) -> None:
        real(*arguments)
        monkeypatch.setattr(card_module, "write_card", real)
        cleaned(corpus)

    monkeypatch.setattr(card_module, "write_card", meanwhile)
    with pytest.raises(UserError, match="written by another process meanwhile"):
        cleaned(corpus)
    check_sums(json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8")), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_command(corpus: Path, tmp_path: Path) -> None:
    result = call("preprocess", "--input_dir", corpus, "--output-dir", tmp_path / "out", "--language", "any")
    assert result.exit_code == 0, result.output
    assert "read: 344 stories" in result.stdout
    assert "dropped, exact duplicate: 20" in result.stdout


def test_without_its_libraries(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    result = call("preprocess", "--input_dir", corpus, "--output_dir", tmp_path / "out")
    assert "pip install 'storyteller_ds[clean]'" in str(result.exception)


def test_plots(corpus: Path, tmp_path: Path) -> None:
    pipeline.preprocess(corpus, tmp_path / "out", Policy(language="any"), 1, lambda line: None)
    plots = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert plots.keys() == {"card-lengths.png", "card-vocabulary.png"}
    assert all(each.startswith(b"\x89PNG") for each in plots.values())
    assert all(name in (tmp_path / "out" / "card.md").read_text(encoding="utf-8") for name in plots)


def test_files_that_are_not_read_are_named(corpus: Path, cleaned: Cleaner) -> None:
    (corpus / "vocab.json").write_text('{"a": 1}')
    (corpus / "empty.txt").touch()
    shutil.copy(corpus / "one.txt", corpus / ".hidden.txt")
    card = cleaned(corpus)
    assert card["not_read"] == ["empty.txt", "vocab.json"]
    assert [each["name"] for each in card["inputs"]] == ["one.txt", "two.txt"]
