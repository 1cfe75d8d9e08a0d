"""Files of each kind are made with the library commonly used for it, under a name that suggests text."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import shlex
import sqlite3
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from backports import zstd
from safetensors.torch import save

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.builtin import grammar
from storyteller_ds.data.shards import write_shards
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.data.sources.file_kind import HEAD_BYTES
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.errors import DataError

STORIES = [grammar.story("train", 0, index) for index in range(120)]
"""More text than the detection looks at, containing quotation marks, commas and blank lines."""
TEXT = "\n\n".join(STORIES)
assert len(TEXT) > HEAD_BYTES


def table(rows: list[tuple[Any, ...]], **form: Any) -> bytes:
    file = io.StringIO()
    csv.writer(file, **form).writerows(rows)
    return file.getvalue().encode()


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, TEXT)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("stories.txt"))
    return file.getvalue()


NUMBERED = list(enumerate(STORIES))
RUSSIAN = "Жила-была лиса. Она жила в лесу.\n\n" * 200
CHINESE = "从前有一只狐狸。它住在森林里。\n\n" * 200
NOISE = random.Random(0).randbytes(5000)

LINES = [story.split("\n")[0] for story in STORIES]
TABLES = {
    "JSON, lines": ("".join(json.dumps({"id": "a", "text": story}) + "\n" for story in STORIES).encode(), STORIES),
    "JSON": (json.dumps([{"text": story, "of": {"x": [1]}} for story in STORIES]).encode(), STORIES),
    "JSON, indented": (json.dumps([{"text": story} for story in STORIES], indent=2).encode("utf-8"), STORIES),
    "JSON, short": (json.dumps([{"text": story} for story in STORIES[:40]]).encode(), STORIES[:40]),
    "CSV": (table([("id", "text"), *NUMBERED]), STORIES),
    "CSV, short": (table([("id", "text"), *NUMBERED[:40]]), STORIES[:40]),
    "CSV, quoted": (table([("id", "text"), *NUMBERED], quoting=csv.QUOTE_ALL), STORIES),
    "CSV, index": (table([("", "text"), *NUMBERED]), STORIES),
    "CSV, one column": (table([("text",), *((story,) for story in STORIES)]), STORIES),
    "TSV": (("id\ttext\n" + "".join(f"{i}\t{line}\n" for i, line in enumerate(LINES))).encode(), LINES),
}
"""Tables of texts that can be trained on, with the texts they contain."""
OTHERS = {
    "JSON, one long": (json.dumps({"text": TEXT}).encode() * 2, "JSON"),
    "JSON, one short": (json.dumps({"text": "A story."}).encode(), "JSON"),
    "JSON behind a byte order mark": (b"\xef\xbb\xbf" + json.dumps(STORIES).encode(), "JSON"),
    "CSV, one row": (table([("id", "text"), *NUMBERED[:1]]), "CSV"),
    "JSON, strings": (json.dumps(STORIES).encode(), "JSON"),
    "JSON, object": (json.dumps({"model": {str(i): i for i in range(20_000)}}).encode(), "JSON"),
    "CSV, no header": (table(NUMBERED), "CSV"),
    "CSV, semicolons": (table([("id", "text"), *NUMBERED], delimiter=";"), "CSV"),
    "TSV, no header": ("".join(f"{i}\tA story.\n" for i in range(9)).encode(), "TSV"),
    "zip": (zipped("stories.txt"), "a zip archive"),
    "docx": (zipped("[Content_Types].xml"), "a zip archive"),
    "tar": (tarred(), "a tar archive"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + NOISE, "PDF"),
    "RTF": (rb"{\rtf1\ansi One.}", "RTF"),
    "HTML": (b"\n<!DOCTYPE html>\n<p>" + TEXT.encode(), "HTML"),
    "HTML, bare": (b"<html>" + TEXT.encode(), "HTML"),
    "XML": (b'<?xml version="1.0"?><a>' + TEXT.encode(), "XML"),
    "safetensors": (save({"weight": torch.randn(99)}), "a binary file"),
    "image": (b"\xff\xd8\xff\xe0" + NOISE, "a binary file"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", "a Git LFS pointer"),
    "noise": (NOISE, "a binary file"),
}
ENCODED = {
    f"{name} in {encoding}": (text, encoding)
    for name, text in (("English", TEXT), ("Russian", RUSSIAN), ("Chinese", CHINESE), ("one line", "Once.\n"))
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
}
PACKED = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd.compress}
PROSE = {
    "stories": TEXT,
    "bracket": "[Applause]\n\nOnce upon a time.",
    "brace": '{"Hello," said the fox}\n\nOnce.',
    "array of words": '["Hello", "you", said the fox]\n\nOnce.',
    "footnotes": "[1]\n\nOnce upon.\n\n[2]\n\nTwice.",
    "open bracket": "[" * 9000,
    "quotations": '"Hello."\n"Hi."\n"Who are you?"\n\n"A fox."\n"Oh."',
    "a title and quotations": 'Talk\n"Hello."\n"Who are you?"\nShe said nothing.',
    "play": "ROMEO: But soft, what light\nJULIET: Ay me\nROMEO: She speaks",
    "commas": "Peter, Paul, Mary\nOne day, in spring, they went out",
    "tight commas": "Red,green,blue\nThere were red, green, and blue birds.",
    "numbers": "About 1,000 foxes\nThere were 2,000 of them",
    "semicolons": "He ran;she ran\nThey fell;it hurt; it did",
    "poem": "Tiger, tiger burning bright\nIn the forests, of the night",
    "tabs": "\tOnce upon a time.\n\tTwice.\n\tThree times.",
    "contents": "Chapter one\t3\nOnce upon a time.\nThe end.",
    "Markdown": "# Title\n\n- a\n- b\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```json\n{}\n```",
    "front matter": "---\ntitle: The fox\nauthor: me\n---\nOnce.",
    "terminal": "Once.\x0c\n\x1b[1mTwice.\x1b[0m",
    "Russian": RUSSIAN,
    "Chinese": CHINESE,
    "orcs": "ORCs came.\n\nBZh, said one. GIF8! said another. %PDF is not a word.",
}


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        list(TextFileSource(path).documents())
    with pytest.raises(DataError) as again:
        _ = TextFileSource(path).fingerprint
    assert str(error.value) == str(again.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "stories.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", PROSE)
def test_prose_is_read_whatever_it_looks_like(tmp_path, name):
    assert list(TextFileSource(written(tmp_path, PROSE[name].encode())).documents())


def test_no_real_stories_are_refused(shared_folder):
    paths = sorted((shared_folder / "data").glob("*.txt"))
    assert paths
    for path in paths:
        assert len(list(TextFileSource(path).documents())) > 500, path


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_text_is_named(tmp_path, name):
    content, kind = OTHERS[name]
    path = written(tmp_path, content)
    assert refused(path).startswith(f"{path} is {kind}")


def test_files_of_libraries_are_named(tmp_path):
    database = sqlite3.connect(tmp_path / "database.txt")
    database.execute("create table story (text)")
    database.close()
    assert "is a binary file" in refused(tmp_path / "database.txt")
    (shard,) = write_shards(tmp_path, "train", [[1, 2, 3]], 100, 100)
    assert "is a binary file" in refused(tmp_path / shard)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_told_from_text_and_its_texts_are_read(tmp_path, name):
    content, stories = TABLES[name]
    path = written(tmp_path, content)
    assert f"is {name.partition(',')[0]}, not plain text; give it as data.source=FILE" in refused(path)
    train, held_out = (list(source.documents()) for source in choose_sources(DataConfig(source=str(path))))
    assert set(train).isdisjoint(held_out)
    assert sorted(train + held_out) == sorted(stories)


def test_following_the_advice_trains_on_the_texts_of_an_arrow_file(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.feather").write_feather(pa.table({"text": STORIES}), tmp_path / "stories.txt")
    message = refused(tmp_path / "stories.txt")
    assert "is Arrow, not plain text" in message
    follow(tmp_path, message.replace("COLUMN", "text"), STORIES)


def follow(tmp_path: Path, message: str, stories: list[str]) -> None:
    """Do what the message says and check that the stories are read."""
    words = shlex.split(message)
    suffix = next(word for word in words if word.startswith("*.")).strip("*,")
    (field,) = (word.partition("=")[2] for word in words if word.startswith("data.text_field="))
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "stories.txt").rename(folder / f"stories{suffix}")
    sources = choose_sources(DataConfig(source=str(folder), text_field=field))
    train, held_out = (list(source.documents()) for source in sources)
    assert set(train).isdisjoint(held_out)
    assert sorted(train + held_out) == sorted(stories)


@pytest.mark.parametrize("name", ENCODED)
def test_text_in_another_encoding_is_the_same_text(tmp_path, name):
    text, encoding = ENCODED[name]
    path = written(tmp_path, text.encode(encoding))
    if not encoding.endswith(("le", "be")):  # these encodings write no byte order mark
        same(path, None, text)
        return
    message = refused(path)
    assert "is UTF-16 without a byte order mark, not plain text; set data.encoding=" in message
    advised = message.rpartition("=")[2]
    assert advised.replace("utf-16", "utf-16-") == encoding
    same(path, advised, text)


@pytest.mark.parametrize("encoding", ["windows-1252", "latin-1", "utf-8", "cp437"])
def test_an_encoding_that_is_given(tmp_path, encoding):
    text = "Ein Bär aß Äpfel.\n\nUne fée, ça va." * 5000
    same(written(tmp_path, text.encode(encoding)), encoding, text)


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_file_is_the_same_text(tmp_path, name):
    same(written(tmp_path, PACKED[name](TEXT.encode())), None, TEXT)
    same(written(tmp_path, PACKED[name](TEXT.encode("utf-16"))), None, TEXT)
    same(written(tmp_path, PACKED[name](TEXT.encode())[:-1000]), None, None)
    two = PACKED[name](b"One.\n\n") + PACKED[name](b"Two.")
    same(written(tmp_path, two), None, "One.\n\nTwo.")
    table = PACKED[name](json.dumps([{"text": story} for story in STORIES]).encode())
    assert "is JSON, not plain text" in refused(written(tmp_path, table))


def same(path: Path, encoding: str | None, text: str | None) -> None:
    """Check that the file reads the same as `text` in a plain file; None: check that it is reported as damaged."""
    source = TextFileSource(path, encoding)
    if text is None:
        with pytest.raises(DataError, match=f"{path} cannot be unpacked: .*; it is damaged or cut off, get it again"):
            list(source.documents())
        return
    plain = path.with_suffix(".plain")
    plain.write_text(text, encoding="utf-8", newline="")
    assert list(source.documents()) == list(TextFileSource(plain).documents())
    assert source.fingerprint == TextFileSource(plain).fingerprint


def test_a_packed_file_is_never_unpacked_whole(tmp_path):
    """A few kilobytes can unpack to gigabytes."""
    path = written(tmp_path, gzip.compress((b"Once upon a time. " * 50 + b"\n\n") * 30_000))
    tracemalloc.start()
    assert sum(1 for _ in TextFileSource(path).documents()) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("encoding", "content", "value", "position"),
    [
        ("ascii", b"x" * 70_000 + b"caf\xe9", "e9", 70_003),
        ("utf-16-le", "Once.".encode("utf-16-le") + b"\x00\xdcx\0", "00", 10),
    ],
)
def test_bytes_that_are_not_of_the_encoding(tmp_path, encoding, content, value, position):
    path = written(tmp_path, content)
    with pytest.raises(DataError) as error:
        list(TextFileSource(path, encoding).documents())
    assert f"is not {encoding}: byte 0x{value} at position {position}; set data.encoding to the" in str(error.value)


def test_zstd_needs_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    assert "is packed with zstd; pip install backports.zstd, or unpack it" in refused(
        written(tmp_path, b"\x28\xb5\x2f\xfd" + NOISE)
    )


@pytest.mark.parametrize("where", [4, len(TEXT.encode()) + 3])
def test_the_command_for_nul_bytes_gives_the_text(tmp_path, where):
    content = TEXT.encode() + b"\n\nA story."
    message = refused(written(tmp_path, content[:where] + b"\0" + content[where:]))
    assert "has NUL bytes" in message
    assert run_command(message).encode() == content


def run_command(message: str) -> str:
    """Run the command that the message proposes and return what it wrote; paths may contain spaces."""
    command = message.split("`")[1]
    subprocess.run(["sh", "-c", command], timeout=60, check=True)
    return Path(shlex.split(command)[-1]).read_text(encoding="utf-8").removeprefix("\ufeff")


def test_commands_quote_the_path(tmp_path):
    folder = tmp_path / "a b; c"
    folder.mkdir()
    assert run_command(refused(written(folder, b"On\0ce."))) == "Once."
