"""Text files, compared with reading the whole file and splitting it with str.split or re.split."""

import hashlib
import os
import random
import re
from pathlib import Path

import pytest

from storyteller_ds.config.data import DataConfig, Split
from storyteller_ds.data.sources import story_ends, text_file, utf8_stream
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.data.sources.reading import Reading
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.sources.story_ends import MARKER
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.data.sources.text_folder import TextFolderSource
from storyteller_ds.errors import DataError

REPO = Path(__file__).parents[3]
SHARED = Path(os.environ.get("STORYTELLER_SHARED", REPO.parent / "shared"))


def whole_file_documents(content: bytes) -> list[str]:
    text = content.decode().replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")
    # A line of only white space, [^\S\n], separates documents just as an empty line does.
    pieces = text.split(MARKER) if MARKER in text else re.split(r"(?:^|\n)(?:[^\S\n]*(?:\n|\Z))+", text)
    return [piece.strip() for piece in pieces if piece.strip()]


def written(tmp_path: Path, content: bytes) -> TextFileSource:
    path = tmp_path / "stories.txt"
    path.write_bytes(content)
    return TextFileSource(path)


def refused(source: TextFileSource) -> str:
    with pytest.raises(DataError) as error:
        list(source.documents())
    message = str(error.value)
    assert "\n" not in message
    return message


def test_is_a_source(tmp_path: Path) -> None:
    source: Source = written(tmp_path, b"One.")
    assert source.name == str(tmp_path / "stories.txt")


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("One.\nTwo.\n\nThree.", ["One.\nTwo.", "Three."]),
        ("\n\n One. \n \t \n\n\nTwo.\n\n", ["One.", "Two."]),
        ("One.\r\nStill one.\r\n\r\nTwo.\r\rThree.", ["One.\nStill one.", "Two.", "Three."]),
        ("One.\u2028Still one.\n\u3000\nTwo.", ["One.\u2028Still one.", "Two."]),
        (f"One.\n\nStill one.{MARKER}Two.", ["One.\n\nStill one.", "Two."]),
        (f"{MARKER}{MARKER}\r\nOne.\r\n{MARKER} \n{MARKER}", ["One."]),
        (f"One. <|endoftext{MARKER}|> Two <|end", ["One. <|endoftext", "|> Two <|end"]),
        (f"\ufeffOne.{MARKER}\ufeffTwo.", ["One.", "Two."]),
        ("\ufeffOne.\n\ufeff\nTwo.\ufeffStill two.", ["One.", "Two.Still two."]),
        ("\ufeff\nOne.", ["One."]),
        ("One.", ["One."]),
    ],
)
def test_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, documents: list[str]) -> None:
    source = written(tmp_path, content.encode())
    assert whole_file_documents(content.encode()) == documents
    for chunk_bytes in (1, 2, 3, 5, 13, 1 << 20):
        monkeypatch.setattr(text_file, "CHUNK_BYTES", chunk_bytes)
        assert list(source.documents()) == documents, chunk_bytes


PARTS = ["a", "Bär", "🐻", " ", "\t", "\n", "\n\n", "\r\n", "\r", "\r\r\n", "\u3000", "\u0085", "<|", "|>", "\ufeff"]


@pytest.mark.parametrize("seed", range(40))
def test_random_files_with_every_chunk_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    choose = random.Random(seed)
    parts = [*PARTS, MARKER, MARKER[:-1]] if seed % 2 else PARTS
    text = "".join(choose.choices(parts, k=60)) + "The end."
    content = text.encode()
    source = written(tmp_path, content)
    for chunk_bytes in range(1, 40):
        monkeypatch.setattr(text_file, "CHUNK_BYTES", chunk_bytes)
        assert list(source.documents()) == whole_file_documents(content), chunk_bytes


def test_marker_late_in_the_file_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "CHUNK_BYTES", 64)
    source = written(tmp_path, b"One.\n\nStill one.\n" * 100 + MARKER.encode() + b"Two.")
    assert len(list(source.documents())) == 2


def test_the_file_is_never_read_whole(tmp_path: Path) -> None:
    # Taking only the first document never reaches the bad byte at the end.
    content = b"One." + MARKER.encode() + b"\nMore." * 100_000 + b"\xff"
    source = written(tmp_path, content)
    assert next(source.documents()) == "One."
    assert f"position {len(content) - 1}" in refused(source)


def test_long_document_in_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This would take minutes if each chunk copied or searched everything read before it.
    monkeypatch.setattr(text_file, "CHUNK_BYTES", 64)
    for end in ("\n\n", MARKER):
        document = "word " * 800_000 + "."
        source = written(tmp_path, f"{document}{end}Two.".encode())
        assert list(source.documents()) == [document, "Two."]


# --- fingerprint ---


def test_fingerprint_is_of_the_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path, b"One.\n\nTwo.")
    first = source.fingerprint
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    monkeypatch.setattr(text_file, "CHUNK_BYTES", 3)
    assert source.fingerprint == first
    assert TextFileSource(source.path.rename(tmp_path / "moved.txt")).fingerprint == first
    assert written(tmp_path, b"One.\n\nTwo!").fingerprint != first
    monkeypatch.setattr(text_file, "FORMAT", b"another format\n")
    assert TextFileSource(tmp_path / "moved.txt").fingerprint != first


def test_a_byte_order_mark_within_is_another_text_than_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a byte order mark inside the text, which were always read correctly, keep their fingerprint."""
    for text, is_new in (("One.", False), ("\ufeffOne.", False), ("\ufeffOne.\ufeff", True), ("One.\ufeff Two.", True)):
        content = text.encode()
        before = hashlib.sha256(text_file.FORMAT + content).hexdigest()
        for chunk_bytes in (1, 2, 3, 5, 1 << 20):
            monkeypatch.setattr(text_file, "CHUNK_BYTES", chunk_bytes)
            assert (written(tmp_path, content).fingerprint != before) == is_new, (text, chunk_bytes)


# --- errors ---


def test_missing_file_names_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("One.")
    source = TextFileSource(tmp_path / "storeis.txt")
    assert "did you mean 'stories.txt'?" in refused(source)
    with pytest.raises(DataError, match="did you mean"):
        _ = source.fingerprint


def test_missing_file_with_nothing_near(tmp_path: Path) -> None:
    (tmp_path / "other.csv").touch()
    message = refused(TextFileSource(tmp_path / "storeis.txt"))
    assert message.startswith(f"{tmp_path / 'storeis.txt'} does not exist; check the path")


def test_missing_folder(tmp_path: Path) -> None:
    assert f"nor does its folder {tmp_path / 'absent'}" in refused(TextFileSource(tmp_path / "absent" / "a.txt"))


def test_path_through_a_file(tmp_path: Path) -> None:
    source = written(tmp_path, b"One.")
    assert "does not exist" in refused(TextFileSource(source.path / "a.txt"))


def test_folder(tmp_path: Path) -> None:
    assert "not a regular file" in refused(TextFileSource(tmp_path))


def test_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(TextFileSource(tmp_path / "pipe"))


def test_empty_file(tmp_path: Path) -> None:
    assert "stories.txt is empty" in refused(written(tmp_path, b""))


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf", b" \r\n\t\n", f"{MARKER}\n{MARKER}".encode()])
def test_file_without_a_document(tmp_path: Path, content: bytes) -> None:
    source = written(tmp_path, content)
    assert (list(source.documents()), source.remarks()) == ([], [])


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, since root can read every file.
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    source = written(tmp_path, b"One.")
    monkeypatch.setattr(utf8_stream, "open_regular", denied)
    assert "cannot be read: Permission denied" in refused(source)


def test_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    source = written(tmp_path, b"One.")
    monkeypatch.setattr(utf8_stream, "open_regular", failing)
    assert "cannot be read: Input/output error" in refused(source)


@pytest.mark.parametrize("before", [0, 8190, 8191, 8192, 100_000])  # the library decodes 8192 bytes at once
@pytest.mark.parametrize(
    ("content", "position", "value"),
    [
        (b"caf\xe9 one", 3, "e9"),
        (b"One.\nTwo.\nB\xc3\xa4r \xff", 15, "ff"),
        (b"One.\r\nTwo.\rThree.\n\r\n\x80", 20, "80"),
        (b"One.\n\r\xff", 6, "ff"),
        ("\ufeffOne.\n".encode() + b"\xc3(", 8, "c3"),
        (b"One.\n\n\xf0\x9f\x90", 6, "f0"),
        ("🐻\n\n".encode() + b"\xf0\x9f\x90x", 6, "f0"),
        (b"\xed\xa0\x80", 0, "ed"),
    ],
)
def test_bytes_that_are_not_utf8(tmp_path: Path, before: int, content: bytes, position: int, value: str) -> None:
    with pytest.raises(UnicodeDecodeError) as expected:
        content.decode()
    assert expected.value.start == position
    message = refused(written(tmp_path, b"x" * before + content))
    assert f"byte 0x{value} at position {before + position}" in message
    assert "set data.encoding=windows-1252, or what it has" in message


# --- remarks ---


@pytest.mark.parametrize(
    ("content", "remarks"),
    [
        ("One.\n\nStill one.<|endoftext|>", ["one document of 3 words", "no text on the other side of <|endoftext|>"]),
        ("One.<|endoftext|>Two words.", ["2 documents of 1 word (median), split at <|endoftext|>"]),
        (
            "A word.\n\nThree words here.\n\nFour words are here.",
            ["3 documents of 3 words (median), split at blank lines; put <|endoftext|> between stories that have"],
        ),
        ("\n\n".join(["word " * 120] * 4), ["4 documents of 120 words (median), split at blank lines"]),
        (
            "One two.\nThree four.",
            ["one document of 4 words", "no blank line", "no <|endoftext|>", "data.split=line"],
        ),
        ("word " * 5000, ["one document of 5,000 words", "put <|endoftext|> between its stories"]),
    ],
)
def test_remarks_say_how_blank_lines_have_parted_the_documents(
    tmp_path: Path, content: str, remarks: list[str]
) -> None:
    source = written(tmp_path, content.encode())
    said = source.remarks()
    assert len(said) == bool(remarks)
    for part in remarks:
        assert part in said[0]
        assert str(source.path) in said[0]


@pytest.mark.parametrize(
    ("split", "documents"),
    [
        ("marker", ["One.\nTwo.", "Three.\n\nFour."]),
        ("blank_line", ["One.\nTwo.", "<|endoftext|>Three.", "Four."]),
        ("line", ["One.", "Two.", "<|endoftext|>Three.", "Four."]),
        ("file", ["One.\nTwo.\n\n<|endoftext|>Three.\n\nFour."]),
        ("none", ["One.\nTwo.\n\n<|endoftext|>Three.\n\nFour."]),
    ],
)
def test_a_split_that_was_chosen(tmp_path: Path, split: Split, documents: list[str]) -> None:
    auto = written(tmp_path, b"One.\r\nTwo.\n\n<|endoftext|>Three.\n \nFour.\n")
    source = TextFileSource(auto.path, split=split)
    assert [re.sub(r"\n \n", "\n\n", document) for document in source.documents()] == documents
    assert source.remarks() == []
    assert source.fingerprint != auto.fingerprint
    assert list(choose_sources(DataConfig(source=str(auto.path), split=split, validation="builtin")).train.documents())
    folder = TextFolderSource(tmp_path, "train", Reading(split=split))
    assert list(folder.documents()) == list(source.documents())


def test_remarks_look_at_the_beginning_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (text_file, story_ends):
        monkeypatch.setattr(module, "LOOKED_AT", 3)
    source = written(tmp_path, b"One word.\n\n" * 100)
    assert "the first 3 documents of 2 words" in source.remarks()[0]


# --- real stories ---


@pytest.mark.parametrize(
    "name",
    ["tinystories_train.txt", "tinystories_val.txt", "tinystories_messy.txt", "grimm.txt", "bryant-stories.txt"],
)
@pytest.mark.parametrize("chunk_bytes", [4099, 1 << 20])
def test_shared_stories(monkeypatch: pytest.MonkeyPatch, name: str, chunk_bytes: int) -> None:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is absent; set STORYTELLER_SHARED to the folder that has data/")
    monkeypatch.setattr(text_file, "CHUNK_BYTES", chunk_bytes)
    documents = list(TextFileSource(path).documents())
    assert documents == whole_file_documents(path.read_bytes())
    if name == "tinystories_train.txt":
        assert len(documents) == 3642
