"""Which source a name refers to, and how a text file is split."""

import os
from pathlib import Path

import pytest

from storyteller_ds.config.data import DataConfig
from storyteller_ds.config.load import load_config
from storyteller_ds.data.sources.builtin import BuiltinSource
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.data.sources.held_out import HeldOutPart
from storyteller_ds.data.sources.huggingface import HuggingFaceSource
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.data.sources.text_folder import TextFolderSource
from storyteller_ds.errors import ConfigError, DataError, UserError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join(f"Story {i}." for i in range(2000)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("stories", "validation"), [(20_000, 1000), (21, 2), (20, 1), (1, 1)])
def test_builtin_has_a_validation_split_of_its_own(stories, validation):
    train, held_out = choose_sources(DataConfig(builtin_stories=stories))
    assert train == BuiltinSource("train", stories)
    assert held_out == BuiltinSource("validation", validation)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("builtin", BuiltinSource),
        ("roneneldan/TinyStories", HuggingFaceSource),
        ("missing.txt", TextFileSource),
        ("missing.md", TextFileSource),
        ("./missing", TextFileSource),
        ("/missing/file", TextFileSource),
        ("~/missing", TextFileSource),
    ],
)
def test_a_name_that_does_not_exist_here_is_told_by_its_form(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    assert isinstance(choose_sources(DataConfig(validation=name)).validation, kind)


def test_what_exists_is_told_by_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").write_text("A story.", encoding="utf-8")
    for name, file in (("texts", "a.txt"), ("rows", "validation.jsonl")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text('{"text": "A story."}\n', encoding="utf-8")
    assert choose_sources(DataConfig(validation="corpus")).validation == TextFileSource(Path("corpus"))
    assert choose_sources(DataConfig(validation="texts")).validation == TextFolderSource(Path("texts"), "validation")
    assert choose_sources(DataConfig(validation="rows")).validation == TextFolderSource(Path("rows"), "validation")


@pytest.mark.parametrize("name", ["stories.jsonl", "data/stories.csv", "stories.txt.gz", "data/stories.parquet"])
def test_a_missing_file_is_told_to_be_missing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        _ = choose_sources(DataConfig(source=name)).train.fingerprint


OF_DATASETS = {"revision": "0" * 40, "text_field": "story", "streaming": True, "max_documents": 5}


@pytest.mark.parametrize("field", OF_DATASETS)
def test_what_is_only_for_datasets_is_refused_for_texts(text, field):
    setting = {field: OF_DATASETS[field]}
    folder = {"source": str(text.parent), "validation": str(text)}
    of_folders = field == "max_documents"
    for names in ({"source": str(text)}, {"source": "builtin"}, *([] if of_folders else [folder])):
        what = "Hugging Face datasets( and tables| and folders)?"
        with pytest.raises(DataError, match=rf"data\.{field}=.* is for {what}, and none is read"):
            choose_sources(DataConfig(**names, **setting))
    choose_sources(DataConfig(source="roneneldan/TinyStories", validation=str(text), **setting))
    by_validation = DataConfig(source=str(text), validation="roneneldan/TinyStories", **setting)
    if field == "max_documents":  # limits the training split only
        with pytest.raises(DataError, match="max_documents"):
            choose_sources(by_validation)
    else:
        choose_sources(by_validation)


@pytest.mark.parametrize("field", ["source", "validation"])
def test_a_home_folder_is_expanded(tmp_path, monkeypatch, field):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = "".join(f'{{"text": "Story {i}."}}\n' for i in range(100))
    for name, content in (("texts/a.txt", "Story 1."), ("rows/train.jsonl", rows), ("a.txt", "Story 1.")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    for name in ("~/a.txt", "~/texts", "~/rows"):
        sources = choose_sources(DataConfig(**{"source": "~/a.txt", "validation": "builtin", field: name}))
        assert "Story 1." in getattr(sources, "train" if field == "source" else field).documents()
        assert next(iter(sources.train.fingerprint))


def test_without_a_home_folder_a_tilde_is_refused(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does without a home folder
    with pytest.raises(UserError, match=r"^~/a\.txt: there is no home folder"):
        _ = choose_sources(DataConfig(source="~/a.txt")).train.fingerprint


def test_a_validation_of_its_own_leaves_the_training_text_whole(text):
    train, held_out = choose_sources(DataConfig(source=str(text), validation="builtin"))
    assert train == TextFileSource(text)
    assert held_out == BuiltinSource("validation", 1000)


def test_the_documents_of_the_hub_are_limited_in_training_only():
    data = DataConfig(source="a/b", revision="0" * 40, max_documents=5, text_field="story", streaming=True)
    train, held_out = choose_sources(data)
    assert isinstance(train, HuggingFaceSource)
    assert isinstance(held_out, HuggingFaceSource)
    assert (train.max_documents, held_out.max_documents) == (5, None)
    assert (train.split, held_out.split) == ("train", "validation")
    assert (train.text_field, train.streaming) == ("story", True)


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_a_text_file_is_split_in_two_disjoint_parts(text, fraction):
    sources = choose_sources(DataConfig(source=str(text), validation_fraction=fraction))
    train, held_out = (list(source.documents()) for source in sources)
    assert set(train).isdisjoint(held_out)
    assert len(train) + len(held_out) == 2000
    # Within five standard deviations of the binomial's mean.
    assert abs(len(held_out) - 2000 * fraction) < 5 * (2000 * fraction * (1 - fraction)) ** 0.5
    assert [list(source.documents()) for source in sources] == [train, held_out]


def test_a_document_stays_on_its_side_when_others_come_and_go(text):
    before = set(choose_sources(DataConfig(source=str(text))).validation.documents())
    lines = text.read_text(encoding="utf-8").split("\n\n")
    text.write_text("\n\n".join(["New.", *reversed(lines[100:]), *lines[100:]]), encoding="utf-8")
    after = list(choose_sources(DataConfig(source=str(text))).validation.documents())
    assert set(after) - {"New."} == before & set(lines[100:])
    assert len(after) - after.count("New.") == 2 * len(set(after) - {"New."})  # a repeated document is held out twice


def test_fingerprints_differ_by_part_fraction_and_text(text):
    source = TextFileSource(text)
    prints = [HeldOutPart(source, f, part).fingerprint for f in (0.1, 0.2) for part in ("kept", "held_out")]
    text.write_text("Another.", encoding="utf-8")
    prints.append(HeldOutPart(TextFileSource(text), 0.1, "kept").fingerprint)
    assert len(set(prints)) == 5
    assert prints[-1] == HeldOutPart(TextFileSource(text), 0.1, "kept").fingerprint


def test_fingerprints_are_those_that_prepared_corpora_and_checkpoints_know(tmp_path):
    # Recorded before text folders were supported; a change would re-prepare every corpus and refuse to resume runs.
    path = tmp_path / "stories.txt"
    path.write_text("One.\n\nTwo.", encoding="utf-8")
    train, held_out = choose_sources(DataConfig(source=str(path)))
    assert [train.fingerprint, held_out.fingerprint] == [
        "832f3cb510ecacb31d655791d022e3b4cf1905b007eee51870bb56c5cf42e56c",
        "e6b76493a4ec7aa24e5464ddf4e6864477daf411b0616b643251e0e0780105ef",
    ]
    assert (
        HuggingFaceSource("roneneldan/TinyStories", "train").fingerprint
        == "c347707e1630c0b9949fccd813e9bfa6d9387c0d8b046d5b3edc92f5d84e9c32"
    )


def test_parts_say_how_large_they_are(text):
    train, held_out = choose_sources(DataConfig(source=str(text), validation_fraction=0.125))
    assert train.name == f"{text} (87.5 % of the documents)"
    assert held_out.name == f"{text} (held-out 12.5 % of the documents)"


@pytest.mark.parametrize(("stories", "fraction", "side"), [(3, 0.01, "none"), (3, 0.99, "all"), (1, 0.05, "none")])
def test_too_few_documents_to_hold_one_out(tmp_path, stories, fraction, side):
    path = tmp_path / "stories.txt"
    path.write_text("<|endoftext|>".join([*(f"Story {i}." for i in range(stories)), ""]), encoding="utf-8")
    sources = choose_sources(DataConfig(source=str(path), validation_fraction=fraction))
    what = rf"has {stories} documents, of which {side} fell .* set data\.validation_fraction=0\.\d, which holds out"
    if stories == 1:
        what = r"nothing can be held out .* is one document of 2 words, for it has no text on the other side"
    with pytest.raises(DataError, match=what):
        sources.remarks()


def test_validation_on_the_training_text_is_told(text):
    (_, remark) = choose_sources(DataConfig(source=str(text), validation=str(text))).remarks()
    assert remark == f"validation is on the very text that is trained on, {text}"


def test_one_document_is_told_with_its_cause_and_its_end_is_held_out(tmp_path):
    path = tmp_path / "stories.txt"
    text = "\n".join(f"Story {i}," for i in range(500))
    path.write_text(text, encoding="utf-8")
    sources = choose_sources(DataConfig(source=str(path)))
    (said, held) = sources.remarks()
    assert "one document of 1,000 words" in said
    assert said.endswith("put <|endoftext|> between its stories, or set data.split=line if each line is one")
    assert held == f"the last 5 % of {path}, one document, are held out"
    (train,), (validation,) = (list(source.documents()) for source in sources)
    assert f"{train}\n{validation}" == text
    assert 0.045 < len(validation) / len(text) < 0.055
    # With a separate validation text this is reported but not refused.
    (remark,) = choose_sources(DataConfig(source=str(path), validation="builtin")).remarks()
    assert "one document of 1,000 words" in remark


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A b.\n" * 60 + "\n" + "C d.\n" * 40, "A b.\n" * 60),  # at a paragraph, though a line end is nearer
        ("A b. " * 60 + "\n" + "C d. " * 40, "A b. " * 60),  # at a line
        ('"A b!" he ' * 100, '"A b!" he ' * 69 + '"A b!"'),  # at a sentence
        ("word " * 100, None),
    ],
)
def test_one_document_is_cut_where_something_ends(tmp_path, text, kept):
    path = tmp_path / "stories.txt"
    path.write_text(text, encoding="utf-8")
    sources = choose_sources(DataConfig(source=str(path), validation_fraction=0.3, split="file"))
    if kept is None:
        with pytest.raises(DataError, match="has 1 document"):
            sources.remarks()
        return
    (train,), (validation,) = (list(source.documents()) for source in sources)
    assert train == kept.strip()
    assert validation == text.removeprefix(kept).strip()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([{"source": "a.txt", "weigth": 2}], "a source has no setting 'weigth'; did you mean 'weight'?"),
        ([{"source": "a.txt", "weight": 0}], "weight=0: input should be greater than 0"),
        ([["a.txt"]], "is not a source; each is a name, or {source: NAME, weight: NUMBER}"),
        ([], "an empty list; name a source"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_of_its_item(source, words):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides={"data.source": source})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
