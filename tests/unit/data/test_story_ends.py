"""Where stories end: each split against re.split, what `auto` chooses for each kind of text, and fingerprints."""

import hashlib
import re
import tracemalloc
from pathlib import Path

import pytest

from storyteller_ds.config.data import DataConfig, Split
from storyteller_ds.data.builtin import grammar
from storyteller_ds.data.sources import story_ends, text_file
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.data.sources.story_ends import MARKER
from storyteller_ds.data.sources.text_file import FORMAT, TextFileSource
from storyteller_ds.errors import DataError

STORIES = [grammar.story("train", 0, index) for index in range(40)]
LINES = [" ".join(story.split()) for story in STORIES]
WRAPPED = "\n".join(re.findall(r".{1,60}(?:\s|$)", " ".join(LINES)))
KINDS = {
    "markers": (f"\n{MARKER}\n".join(STORIES), "marker"),
    "a marker at the end": ("\n\n".join(STORIES) + MARKER, "marker"),
    "a marker behind lines": ("\n".join(LINES) + MARKER, "marker"),
    "a marker with a byte order mark within": ("\n".join(LINES) + MARKER[:5] + "\ufeff" + MARKER[5:], "marker"),
    "blank lines": ("\n\n".join(LINES), "blank_line"),
    "one blank line of white space": ("\n".join(LINES[:30]) + "\r\n \u3000\r\n" + "\n".join(LINES[30:]), "blank_line"),
    "a story a line": ("\n".join(LINES), "line"),
    "a story a line, Windows": ("\r\n".join(LINES), "line"),
    "a story a line, and blank lines around": ("\n\n" + "\n".join(LINES) + "\n\n\n", "line"),
    "nine of ten lines are sentences": ("\n".join([*LINES[:36], *["no end"] * 4]), "line"),
    "too few are": ("\n".join([*LINES[:35], *["no end"] * 5]), "file"),
    "one wrapped text": (WRAPPED, "file"),
    "a poem": ("\n".join(["Tiger, tiger burning bright", "In the forests of the night,"] * 20), "file"),
    "few lines": ("\n".join(LINES[:19]), "file"),
    "enough lines": ("\n".join(LINES[:20]), "line"),
    "no line end": (LINES[0], "file"),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "stories.txt"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("chunk_bytes", [7, 1 << 16])
@pytest.mark.parametrize("is_read_before", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_auto_decides_by_the_content(tmp_path, monkeypatch, kind, is_read_before, chunk_bytes):
    monkeypatch.setattr(text_file, "CHUNK_BYTES", chunk_bytes)
    text, ends = KINDS[kind]
    source = TextFileSource(written(tmp_path, text))
    if is_read_before:
        _ = source.fingerprint
    assert source.ends == ends
    assert list(source.documents()) == list(TextFileSource(source.path, split=ends).documents())


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_as_it_was_unless_the_documents_are_others(tmp_path, kind):
    text, _ = KINDS[kind]
    source = TextFileSource(written(tmp_path, text))
    # Before `auto`, texts were split at markers or else at blank lines, and only the text was in the fingerprint.
    before = TextFileSource(source.path, split="marker" if MARKER in text.replace("\ufeff", "") else "blank_line")
    is_same = list(source.documents()) == list(before.documents())
    if "\ufeff" not in text:  # byte order marks have a rule of their own
        assert (source.fingerprint == hashlib.sha256(FORMAT + text.encode()).hexdigest()) == is_same
    if not is_same:  # then it is the fingerprint of the explicit split that gives the same documents
        assert source.fingerprint == TextFileSource(source.path, split=source.ends).fingerprint
    assert is_same == (source.ends != "line")


@pytest.mark.parametrize(
    ("split", "pattern"), [("line", "\n"), ("blank_line", r"\n\s*\n"), ("file", r"\Z"), ("none", r"\Z")]
)
def test_what_is_said_is_done(tmp_path, split, pattern):
    text = "\n".join(LINES) + "\n\nLast.\n"
    expected = [piece.strip() for piece in re.split(pattern, text) if piece.strip()]
    assert list(TextFileSource(written(tmp_path, text), split=split).documents()) == expected


def test_each_way_is_another_corpus(tmp_path):
    path = written(tmp_path, KINDS["a story a line"][0])
    splits: tuple[Split, ...] = ("marker", "blank_line", "line", "file", "none")
    assert len({TextFileSource(path, split=split).fingerprint for split in splits}) == 5


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("markers", r"40 documents of \d+ words \(median\), split at <\|endoftext\|>$"),
        ("blank lines", r"40 documents of \d+ words \(median\), split at blank lines"),
        ("a story a line", r"40 documents of \d+ words \(median\), one a line; set data\.split=file if "),
        ("one wrapped text", r"is one document of [\d,]+ words, for it has no blank line within .* data\.split=line"),
    ],
)
def test_what_was_decided_is_said(tmp_path, kind, what):
    (remark,) = TextFileSource(written(tmp_path, KINDS[kind][0])).remarks()
    assert re.search(what, remark)


def test_text_without_markers_is_read_once_for_its_fingerprint_and_once_for_its_documents(tmp_path, monkeypatch):
    opened, real = [], text_file.opened_as_utf8
    monkeypatch.setattr(text_file, "opened_as_utf8", lambda *given: opened.append(1) or real(*given))
    source = TextFileSource(written(tmp_path, "\n\n".join(LINES)))
    _ = source.fingerprint
    assert len(opened) == 1
    for read in (2, 3):
        assert len(list(source.documents())) == 40
        assert len(opened) == read


# --- none: one document, held out by position ---


def test_none_holds_out_the_end_of_a_file(tmp_path):
    text = "\n\n".join(STORIES)
    data = DataConfig(source=str(written(tmp_path, text)), split="none", validation_fraction=0.2)
    sources = choose_sources(data)
    (kept,), (held,) = (list(source.documents()) for source in sources)
    assert f"{kept}\n\n{held}" == text
    assert 0.15 < len(held) / len(text) < 0.25
    assert sources.remarks()[-1].startswith("the last 20 % of ")


@pytest.mark.parametrize("name", ["", "/*"])
def test_none_holds_out_the_end_of_each_file_of_several(tmp_path, name):
    texts = ["\n\n".join(STORIES[i : i + 20]) for i in (0, 20)]
    for number, text in enumerate([*texts, "word"]):
        (tmp_path / f"{number}.txt").write_text(text)
    rows = "".join(f'{{"text": "Story {i}."}}\n' for i in range(200))
    (tmp_path / "rows.jsonl").write_text(rows)
    sources = choose_sources(DataConfig(source=f"{tmp_path}{name}", split="none", validation_fraction=0.2))
    kept, held = (list(source.documents()) for source in sources)
    for side in (kept, held):
        if "word" in side:
            side.remove("word")  # it cannot be cut, so its hash decides which side it is on
    assert [f"{before}\n\n{after}" for before, after in zip(kept[:2], held[:2], strict=True)] == texts
    assert sorted([*kept[2:], *held[2:]]) == sorted(f"Story {i}." for i in range(200))
    assert 20 < len(held[2:]) < 60
    assert sources.remarks()[-1].startswith("the last 20 % of each text of ")
    by_story = choose_sources(DataConfig(source=f"{tmp_path}{name}", split="file", validation_fraction=0.2))
    assert len({source.fingerprint for source in (*sources, *by_story)}) == 4


def test_none_of_files_that_cannot_be_cut_is_refused(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("word")
    with pytest.raises(DataError, match=r"is without a document; use more text, .* data\.validation$"):
        choose_sources(DataConfig(source=str(tmp_path), split="none", validation_fraction=0.01)).remarks()


# --- text without end ---


@pytest.mark.parametrize("text", ["x" * 3000, "x\n" * 2000], ids=["line", "lines"])
@pytest.mark.parametrize("split", ["marker", "blank_line", "file", "none", "auto"])
def test_a_document_without_end_is_refused(tmp_path, monkeypatch, text, split):
    for module in (story_ends, text_file):
        monkeypatch.setattr(module, "LONGEST", 1000)
    with pytest.raises(DataError, match=r"(line 2|a document) of .* has more than [\d,]+ characters.* data\.split"):
        list(TextFileSource(written(tmp_path, "One.\n" + text), split=split).documents())


def test_a_long_line_with_markers_is_many_stories(tmp_path, monkeypatch):
    for module in (story_ends, text_file):
        monkeypatch.setattr(module, "LONGEST", max(map(len, LINES)))
    source = TextFileSource(written(tmp_path, MARKER.join(LINES)))
    assert list(source.documents()) == LINES


def test_fifty_megabytes_in_one_line_are_never_in_memory(tmp_path):
    path = tmp_path / "line.txt"
    with path.open("w") as file:
        for _ in range(100):
            file.write("word " * 100_000)
    tracemalloc.start()
    source = TextFileSource(path)
    _ = source.fingerprint
    for split in ("auto", "line", "none"):
        with pytest.raises(DataError, match="has more than 16,777,216 characters"):
            list(TextFileSource(path, split=split).documents())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20
