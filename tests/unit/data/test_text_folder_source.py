"""Text folders, compared with their files read one by one as single files."""

import gzip
import hashlib
import lzma
import os
import re
import sys
from pathlib import Path

import pytest

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.sources.choose import Sources, choose_sources
from storyteller_ds.data.sources.huggingface import HuggingFaceSource
from storyteller_ds.data.sources.reading import Reading
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.data.sources.text_folder import TextFolderSource
from storyteller_ds.errors import DataError


def make(folder: Path, **files: str | bytes) -> Path:
    """Make a folder with these files; in the names, __ stands for a dot and SUB_ for the folder `sub`."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".").replace("SUB_", "sub/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def whole(folder: Path, **data: object) -> Sources:
    return choose_sources(DataConfig(source=str(folder), **data))


def read(folder: Path, encoding: str | None = None) -> list[str]:
    return list(TextFolderSource(folder, "train", Reading(encoding)).documents())


def look_through(folder: Path, **data: object) -> None:
    """Use the folder the way a run without a prepared corpus does."""
    sources = whole(folder, **data)
    for source in sources:
        _ = source.fingerprint
    sources.remarks()
    for source in sources:
        list(source.documents())


def refused(folder: Path, **data: object) -> str:
    with pytest.raises(DataError) as error:
        look_through(folder, **data)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sixty_stories_in_sixty_files_are_sixty_documents(tmp_path):
    stories = [f"Story {i}.\nIt has lines.\nThe end." for i in range(60)]
    for i, story in enumerate(stories):
        (tmp_path / f"{i:02}.txt").write_text(story + "\n<|endoftext|>\n" * (i % 2))
    train, held_out = whole(tmp_path, validation_fraction=0.2)
    assert sorted([*train.documents(), *held_out.documents()]) == sorted(stories)
    assert set(train.documents()).isdisjoint(held_out.documents())
    assert 2 < len(list(held_out.documents())) < 30


def test_with_a_marker_somewhere_every_file_is_split_as_a_single_one_is(tmp_path):
    folder = make(
        tmp_path / "folder",
        a__txt="One.\n\nTwo.",
        b__text="Three.\n\nStill three.<|endoftext|>Four.",
        c__md=b"\xef\xbb\xbfFive.\r\n\r\nSix.",
        SUB_d__TXT="Seven.",
        e__txt="",
        f__txt=" \n",
        README__md="About.",
        LICENSE="Rights.",
        __DS_Store=b"\0",
        __hidden__txt="Hidden.",
    )
    singles = [TextFileSource(folder / name) for name in ("a.txt", "b.text", "c.md", "sub/d.TXT")]
    expected = [document for single in singles for document in single.documents()]
    assert expected == ["One.", "Two.", "Three.\n\nStill three.", "Four.", "Five.", "Six.", "Seven."]
    assert read(folder) == expected
    assert read(folder) == expected


def test_the_order_is_that_of_relative_paths(tmp_path):
    names = ["z.txt", "a/2.txt", "a/10.txt", "b.txt", "a-b/x.txt", "a.txt", "b/c/d/e.txt"]
    for name in reversed(names):
        path = tmp_path / "stories" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert read(tmp_path / "stories") == sorted(names, key=lambda name: name.split("/"))


def test_the_fingerprint_is_of_the_contents_in_their_order(tmp_path):
    folder = make(tmp_path / "one", a__txt="One.", b__txt="Two.")
    first = TextFolderSource(folder, "train").fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first)
    moved = make(tmp_path / "two", c__md="One.", d__txt="Two.", e__txt="", README__md="About.")
    assert TextFolderSource(moved, "train").fingerprint == first
    others = [
        {"a__txt": "Two.", "b__txt": "One."},
        {"a__txt": "One."},
        {"a__txt": "One.Two."},
        {"a__txt": "One.\n\nTwo."},
    ]
    prints = [
        TextFolderSource(make(tmp_path / f"o{i}", **files), "train").fingerprint for i, files in enumerate(others)
    ]
    assert len({first, *prints}) == 5


def test_a_repeated_story_is_on_one_side_in_whichever_files_it_is(tmp_path):
    stories = [f"Story {j}." for j in range(60)]
    folder = make(tmp_path / "folder", **{f"f{i}__txt": "<|endoftext|>".join(stories) for i in range(3)})
    train, held_out = (list(source.documents()) for source in whole(folder, validation_fraction=0.3))
    assert set(train).isdisjoint(held_out)
    assert len(train) + len(held_out) == 180


# --- files named after splits ---


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train__txt", "validation__txt"),
        ("TinyStoriesV2-GPT4-train__txt", "TinyStoriesV2-GPT4-valid__txt"),
        ("tiny_train__txt", "tiny_val__txt"),
        ("train-00000-of-00001__txt", "dev__md"),
        ("train_stories__txt", "val_stories__txt"),
        ("train__part1__txt", "eval__txt"),
    ],
)
def test_files_named_for_splits_are_the_splits(tmp_path, train, validation):
    folder = make(tmp_path, **{train: "One.\n\nTwo.", validation: "Three.<|endoftext|>\n\nFour.", "test__txt": "Five."})
    sources = whole(folder)
    assert [list(source.documents()) for source in sources] == [["One.", "Two."], ["Three.", "Four."]]
    assert f"not read: {folder / 'test.txt'}" in sources.remarks()


def test_folders_named_for_splits_are_the_splits(tmp_path):
    for name in ("train/fox.txt", "train/more/val.txt", "validation/train.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [list(source.documents()) for source in whole(tmp_path)] == [
        ["train/fox.txt", "train/more/val.txt"],
        ["validation/train.txt"],
    ]


def test_a_part_is_held_out_where_only_train_is_named(tmp_path):
    stories = [f"Story {i}." for i in range(100)]
    folder = make(tmp_path, train__txt="\n\n".join(stories), test__txt="Five.")
    train, held_out = (list(source.documents()) for source in whole(folder, validation_fraction=0.2))
    assert sorted(train + held_out) == sorted(stories)
    assert held_out


def test_a_story_may_be_called_train_or_test(tmp_path):
    folder = make(tmp_path, the_train__txt="Puff.", test__txt="Sit still.", fox__txt="Ring.")
    assert read(folder) == ["Ring.", "Sit still.", "Puff."]


@pytest.mark.parametrize(
    "names", [("train", "validation", "fox"), ("validation", "fox"), ("tiny-val", "fox"), ("val_and_me", "fox")]
)
def test_files_of_which_only_some_are_named_for_splits_are_refused(tmp_path, names):
    line = refused(make(tmp_path, **{f"{name}__txt": name for name in names}))
    assert f"{names[-2]}.txt is named for a split and " in line
    assert "fox.txt is not" in line


def test_a_folder_with_validation_only(tmp_path):
    folder = make(tmp_path / "folder", validation__txt="One.")
    text = make(tmp_path, stories__txt="Two.") / "stories.txt"
    assert "has no text file for train (" in refused(folder)
    assert list(whole(text, validation=str(folder)).validation.documents()) == ["One."]


def test_a_folder_given_for_validation_is_read_as_a_whole_unless_it_has_that_split(tmp_path):
    text = make(tmp_path, stories__txt="Zero.") / "stories.txt"
    plain = make(tmp_path / "plain", a__txt="One.", b__txt="Two.")
    assert list(whole(text, validation=str(plain)).validation.documents()) == ["One.", "Two."]
    (plain / "a.txt").rename(plain / "train.txt")
    (plain / "b.txt").rename(plain / "val.txt")
    assert list(whole(text, validation=str(plain)).validation.documents()) == ["Two."]


# --- which folders are read as texts ---


def test_a_card_that_names_files_makes_a_dataset(tmp_path):
    folder = make(tmp_path, README__md="---\nlicense: mit\n---\nStories.", a__txt="One.\n\nTwo.\n\n" * 50)
    assert len(read(folder)) == 100
    assert not isinstance(whole(folder).train, HuggingFaceSource)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.txt\n---\n")
    assert isinstance(whole(folder, validation="builtin").train, HuggingFaceSource)


def test_a_broken_card_of_a_folder_of_texts_is_nobodys_concern(tmp_path):
    folder = make(tmp_path, README__md="---\na: b: c\n---\nStories.", a__txt="One.")
    assert list(whole(folder, validation="builtin").train.documents()) == ["One."]


@pytest.mark.parametrize("other", ["b__docx", "cover__jpg", "SUB_b__arrow", "b__txt__zip"])
def test_texts_and_something_else_are_refused_by_name(tmp_path, other):
    line = refused(make(tmp_path, a__txt="One.", **{other: "x"}))
    assert "a.txt" in line
    assert other.replace("__", ".").replace("SUB_", "sub/") in line


def test_packed_texts_are_texts(tmp_path):
    folder = make(
        tmp_path, a__txt="One.\n\nStill one.", b__txt__gz=gzip.compress(b"Three."), c__md__xz=lzma.compress(b"Four.")
    )
    assert read(folder) == ["One.\n\nStill one.", "Three.", "Four."]
    (folder / "b.txt.gz").write_bytes(b"")
    assert read(folder) == ["One.\n\nStill one.", "Four."]


def test_the_encoding_is_that_of_all_files(tmp_path):
    folder = make(tmp_path, a__txt="Bär.".encode("latin-1"), b__txt="Fée.".encode("latin-1"))
    assert read(folder, encoding="latin-1") == ["Bär.", "Fée."]
    with pytest.raises(DataError, match=r"data\.encoding=latin-1 is for text files and tables"):
        choose_sources(DataConfig(source="builtin", encoding="latin-1"))


def test_a_readme_or_notes_beside_a_dataset_are_no_texts(tmp_path):
    rows = "".join(f'{{"text": "Story {i}."}}\n' for i in range(100))
    folder = make(tmp_path, README__md="About.", NOTES__md="More.", LICENSE__txt="Rights.", train__jsonl=rows)
    sources = whole(folder)
    assert len([*sources.train.documents(), *sources.validation.documents()]) == 100


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "has no text file (*.txt, *.text, *.md; "),
        ({"README__md": "About."}, "README and the like do not count"),
        ({"a__txt": "", "b__txt": ""}, "nor do empty files"),
        ({"a__txt": " ", "b__txt": "\n<|endoftext|>"}, "has no story; put some in"),
    ],
)
def test_a_folder_without_a_story(tmp_path, files, what):
    assert what in refused(make(tmp_path, **files))


@pytest.mark.parametrize(
    "files",
    [
        {"metrics__jsonl": '{"step": 1, "train_loss": 1.5}\n', "config__json": "{}", "samples__md": "Once."},
        {"manifest__json": '{"files": {}}', "trainer__json": '{"step": 1}', "weights__safetensors": "x"},
        {"corpus__json": '{"train": {}}', "tokenizer__json": '{"model": {}}', "train-00000__tokens": "x"},
    ],
    ids=["run folder", "checkpoint", "prepared corpus"],
)
@pytest.mark.parametrize("above", [False, True])
def test_what_a_run_has_made_is_no_text(tmp_path, files, above):
    pytest.importorskip("datasets", reason="needs pip install datasets")
    folder = make(tmp_path / "made", **files)
    assert refused(tmp_path if above else folder, validation="builtin").startswith(str(tmp_path))


# --- errors in one of the files ---


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"caf\xe9", "is not UTF-8"),
        (b"\x1f\x8b\x08", "cannot be unpacked"),
        (b'{"a": "b"}\n{"a": "c"}', "has no field 'text'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, what):
    line = refused(make(tmp_path, a__txt="One.\n\nTwo.", SUB_b__txt=content))
    assert line.startswith(f"{tmp_path / 'sub' / 'b.txt'} {what}")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(make(tmp_path, a__txt="One.") / "b.txt")
    assert "b.txt" in refused(tmp_path)


@pytest.mark.parametrize("target", ["outside.txt", "nothing.txt", "outside", "inside/sub", "inside/link.txt"])
def test_a_link_that_would_read_other_files_or_some_twice_is_refused(tmp_path, target):
    (tmp_path / "outside.txt").write_text("Secret.")
    make(tmp_path / "outside", a__txt="Secret.")
    folder = make(tmp_path / "inside", a__txt="One.", SUB_b__txt="Two.")
    (folder / "link.txt").symlink_to(tmp_path / target)
    assert f"{folder / 'link.txt'} leads out of {folder}, or to a folder, or nowhere" in refused(folder)


def test_a_link_within_and_a_linked_folder_are_read(tmp_path):
    folder = make(tmp_path / "inside", a__txt="One.")
    (folder / "b.txt").symlink_to("a.txt")
    (tmp_path / "link").symlink_to(folder)
    assert read(tmp_path / "link") == ["One.", "One."]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    # Patched, since root can read every folder.
    folder, real = make(tmp_path, a__txt="One.", SUB_b__txt="Two."), os.scandir

    def denied(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert refused(folder).startswith(f"{folder / 'sub'} cannot be read: Permission denied")


# --- remarks and names ---


def test_remarks_say_what_is_not_read_and_how_documents_came_out(tmp_path):
    files = {f"f{i}__txt": f"Once {i}.\n\nTwice {i}." for i in range(30)}
    folder = make(tmp_path, README__md="About.", empty__txt="", marked__txt="word " * 500 + "<|endoftext|>", **files)
    remarks = whole(folder, validation_fraction=0.3).remarks()
    assert remarks[:2] == [f"not read: {folder / 'README.md'}", f"not read: {folder / 'empty.txt'}"]
    assert "60 documents of 2 words (median), split at blank lines" in remarks[2]
    assert len(remarks) == 3


def test_names_say_what_is_read(tmp_path):
    folder = make(tmp_path, a__txt="One.", b__txt="Two.", c__txt="")
    assert [source.name for source in whole(folder)] == [
        f"{folder} (2 files) (95 % of the documents)",
        f"{folder} (2 files) (held-out 5 % of the documents)",
    ]
    (folder / "a.txt").rename(folder / "train.txt")
    (folder / "b.txt").rename(folder / "validation.txt")
    (folder / "c.txt").unlink()
    assert [source.name for source in whole(folder)] == [f"{folder} (train, 1 file)", f"{folder} (validation, 1 file)"]


def test_one_document_in_a_folder_is_told_as_in_a_file(tmp_path):
    line = refused(make(tmp_path, a__txt="One.\nTwo.\nThree."))
    assert "a.txt is one document of 3 words" in line
    assert "data.validation" not in line


# --- one story per file, tables and packed files ---


def test_of_several_files_without_any_marker_each_is_a_story(tmp_path):
    folder = make(tmp_path, a__txt="One.\n\nStill one.", b__txt="Two.\nStill two.", c__txt=" \n")
    assert read(folder) == ["One.\n\nStill one.", "Two.\nStill two."]
    (remark,) = TextFolderSource(folder, "train").remarks()
    assert remark.startswith(f"{folder} (3 files): 2 documents of 3 words (median), one a file; set data.split=blank")
    by_blank_lines = TextFolderSource(folder, "train", Reading(split="blank_line"))
    assert list(by_blank_lines.documents()) == ["One.", "Still one.", "Two.\nStill two."]
    make(tmp_path, d__txt="Three.<|endoftext|>Four.")
    assert read(folder) == ["One.", "Still one.", "Two.\nStill two.", "Three.", "Four."]


@pytest.mark.parametrize(
    ("files", "is_same"),
    [
        ({"a__txt": "One.", "b__txt": "\nTwo.\nStill two.\n\n"}, True),
        ({"a__txt": "One.", "b__txt": "Two.\n\nThree."}, False),
        ({"a__txt": "One.\n\nTwo."}, True),  # a single file
        ({"a__txt": "One.\n\nTwo.", "b__txt": "Three.<|endoftext|>Four."}, True),
        ({"a__txt": "One line.\n" * 30, "b__txt": "Three.<|endoftext|>Four."}, False),
    ],
)
def test_the_fingerprint_is_as_it_was_unless_the_documents_are_others(tmp_path, files, is_same):
    folder = make(tmp_path, **files)
    digest, documents = hashlib.sha256(b"storyteller text folder 1\n"), []
    for content in files.values():
        digest.update(hashlib.sha256(b"storyteller text file 1\n" + content.encode()).digest())
        pieces = content.split("<|endoftext|>") if "<|endoftext|>" in content else content.split("\n\n")
        documents += [piece.strip() for piece in pieces if piece.strip()]
    source = TextFolderSource(folder, "train")
    assert (list(source.documents()) == documents) == is_same
    assert (source.fingerprint == digest.hexdigest()) == is_same


def test_a_folder_may_mix_texts_and_tables_packed_or_not(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = make(
        tmp_path / "my stories",
        a__txt="One.",
        b__jsonl='{"text": "Two."}\n',
        SUB_c__csv__gz=gzip.compress(b"id,story\n1,Three.\n"),
        d__txt__gz=gzip.compress(b"Four."),
        e__tsv="text\nFive.\nSix.\n",
        f__json='["Seven."]',
        NOTES__md="About the tables.",
        dataset_info__json="{}",
    )
    parquet.write_table(pa.table({"text": ["Eight."]}), folder / "g.parquet")
    (folder / "dataset_info.json").unlink()
    source = TextFolderSource(folder, "train")
    assert list(source.documents()) == ["One.", "Two.", "Four.", "Five.", "Six.", "Seven.", "Eight.", "Three."]
    assert source.name == f"{folder} (7 files)"
    assert f"not read: {folder / 'NOTES.md'}" in source.remarks()
    assert any("'story'" in line for line in source.remarks())
    assert any("2 files of " in line for line in source.remarks())
    assert len(list(choose_sources(DataConfig(source=str(folder), max_documents=3)).train.source.documents())) == 3


def test_splits_are_named_for_all_kinds_of_files(tmp_path):
    packed = make(
        tmp_path,
        my_train__jsonl__gz=gzip.compress(b'{"text": "A"}'),
        my_val__txt__gz=gzip.compress(b"B"),
        SUB_dev__csv='text\n"B, too"\n',
        test__tsv="text\nC\n",
    )
    sources = whole(packed)
    assert [list(each.documents()) for each in sources] == [["A"], ["B", "B, too"]]
    assert f"not read: {packed / 'test.tsv'}" in sources.remarks()


ROWS = "".join(f'{{"n": {i}, "text": "Story {i}."}}\n' for i in range(30))
CSV = "n,text\n" + "".join(f'{i},"Story, {i}."\n' for i in range(30))


@pytest.mark.parametrize(
    "files",
    [
        {"a__jsonl": ROWS, "b__json": '[{"text": "Last."}]'},
        {"train__csv": CSV, "validation__csv": CSV.replace("Story", "Tale"), "test__csv": CSV},
        {"train-00000-of-00002__jsonl": ROWS, "train-00001-of-00002__jsonl": '{"text": "Last."}\n', "README__md": "A"},
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_folder_of_tables_has_the_documents_and_the_fingerprint_that_it_had(tmp_path, files, split):
    """Such folders used to be read by `datasets`; runs on them must be able to continue."""
    pytest.importorskip("datasets", reason="needs pip install datasets")
    folder = make(tmp_path, **files)
    source = TextFolderSource(folder, split)
    before = HuggingFaceSource(str(folder), split if source.has_split(split) else "train")
    assert list(source.documents()) == list(before.documents())
    assert source.fingerprint == before.fingerprint
    limited = TextFolderSource(folder, split, max_documents=1)
    assert limited.fingerprint == HuggingFaceSource(str(folder), before.split, max_documents=1).fingerprint
    encoded = TextFolderSource(folder, split, Reading(encoding="latin-1"))  # was refused before
    assert len({before.fingerprint, limited.fingerprint, encoded.fingerprint}) == 3


def test_the_fingerprint_of_what_no_library_read_is_of_what_is_in_the_files(tmp_path):
    plain = make(tmp_path / "plain", a__jsonl=ROWS, b__txt="One.")
    packed = make(tmp_path / "packed", a__jsonl__gz=gzip.compress(ROWS.encode()), c__md="One.", d__txt="")
    assert TextFolderSource(plain, "train").fingerprint != TextFolderSource(packed, "train").fingerprint  # no c.md
    (packed / "c.md").rename(packed / "c.txt")
    assert TextFolderSource(plain, "train").fingerprint == TextFolderSource(packed, "train").fingerprint
    limits = [TextFolderSource(plain, "train", max_documents=limit).fingerprint for limit in (None, 1, 2)]
    assert len({*limits}) == 3


def test_a_folder_of_tables_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    folder = make(tmp_path, a__jsonl=ROWS, figure__png="x", README__md="---\nlicense: mit\n---\n")
    sources = whole(folder, validation_fraction=0.3)
    assert len([*sources.train.documents(), *sources.validation.documents()]) == 30
    assert f"not read: {folder / 'figure.png'}" in sources.remarks()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a__jsonl", '{"text": "One\n{"text": "Two."}\n', "line 1 is not JSON"),
        ("a__json", "{}", "has no row with a story"),
        ("a__csv", "text\nOne.\nTwo, too.\n", "line 3 is a row of 2 fields in place of 1"),
    ],
)
def test_a_broken_table_is_no_text(tmp_path, name, content, what):
    assert what in refused(make(tmp_path, **{name: content}))


def test_a_csv_may_have_any_names_if_one_of_them_is_given(tmp_path):
    folder = make(tmp_path, a__csv="n,The (whole) story!\n1,One.\n2,Two.\n")
    source = TextFolderSource(folder, "train", Reading(text_field="The (whole) story!"))
    assert list(source.documents()) == ["One.", "Two."]
