"""Tables in a single file, compared with the whole file as read by json, csv and pyarrow."""

import csv
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.sources import rows
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.data.sources.table_file import TableFileSource
from storyteller_ds.errors import DataError

ALPHABET = ["a", "fox", " ", "\n", "\r\n", '"', "'", ",", ";", "\t", "\\", "{", "]", "é", "狐", "🐻", "\u2028", "\x0c"]


def texts(seed: int, count: int = 60) -> list[str]:
    random.seed(seed)
    return ["Once " + "".join(random.choices(ALPHABET, k=random.randrange(200))) + "." for _ in range(count)]


def as_documents(found: list[str]) -> list[str]:
    return [text.replace("\r\n", "\n").strip() for text in found]


def json_lines(found: list[str], **form: Any) -> str:
    return "".join(json.dumps({"id": i, "text": text}, **form) + "\n" for i, text in enumerate(found))


def json_array(found: list[str], **form: Any) -> str:
    return json.dumps([{"n": {"x": [1, None]}, "text": text} for text in found], **form)


def csv_text(found: list[str], **form: Any) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, **form).writerows([("id", "text"), *enumerate(found)])
    return file.getvalue()


FORMS: dict[str, Callable[[list[str]], str]] = {
    "lines": json_lines,
    "lines, not escaped": lambda found: json_lines(found, ensure_ascii=False),
    "array": json_array,
    "array, indented": lambda found: json_array(found, indent=2, ensure_ascii=False),
    "objects, one after the other": lambda found: "".join(json.dumps({"text": text}, indent=1) for text in found),
    "texts": lambda found: json.dumps(found),
    "CSV": csv_text,
    "CSV, semicolons": lambda found: csv_text(found, delimiter=";"),
    "CSV, quoted": lambda found: csv_text(found, quoting=csv.QUOTE_ALL),
}


def table(tmp_path: Path, content: str | bytes, **data: Any) -> TableFileSource:
    path = tmp_path / "rows.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    train = choose_sources(DataConfig(source=str(path), validation="builtin", **data)).train
    assert isinstance(train, TableFileSource)
    return train


def refused(source: TableFileSource) -> str:
    with pytest.raises(DataError) as error:
        list(source.documents())
    assert str(error.value).startswith(f"{source.path}: ")
    return str(error.value).removeprefix(f"{source.path}: ")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("read_at_once", [1, 7, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_text(tmp_path, monkeypatch, form, read_at_once, seed):
    if not form.startswith("CSV"):  # the CSV delimiter is detected in the first read
        monkeypatch.setattr(rows, "_READ_CHARACTERS", read_at_once)
    found = texts(seed)
    source = table(tmp_path, FORMS[form](found))
    assert list(source.documents()) == as_documents(found)
    assert source.remarks() == []


@pytest.mark.parametrize("kind", ["packed", "utf-16", "with a byte order mark"])
@pytest.mark.parametrize("form", ["lines", "array", "CSV"])
def test_packed_and_encoded_rows_are_the_same(tmp_path, form, kind):
    content = FORMS[form](texts(1))
    plain = table(tmp_path, content)
    expected, fingerprint = list(plain.documents()), plain.fingerprint
    data = {
        "packed": gzip.compress(content.encode()),
        "utf-16": content.encode("utf-16"),
        "with a byte order mark": content.encode("utf-8-sig"),
    }[kind]
    source = table(tmp_path, data)
    assert list(source.documents()) == expected
    assert (source.fingerprint == fingerprint) == (kind != "with a byte order mark")


def test_parquet(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    found = texts(2, 3000)
    parquet.write_table(pa.table({"n": range(3000), "story": found}), tmp_path / "rows.txt")
    source = table(tmp_path, (tmp_path / "rows.txt").read_bytes())
    assert list(source.documents()) == as_documents(found)
    assert source.remarks() == [f"{source.path}: the stories are in its field 'story' (data.text_field)"]
    whole = (tmp_path / "rows.txt").read_bytes()
    cut = table(tmp_path, whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot be read: .*; it is damaged or cut off, get it again"):
        list(cut.documents())


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"title": "The fox", "story": "Once."}, "story"),
        ({"title": "A very long title, longer than the tale itself", "Content": "Once."}, "Content"),
        ({"id": "x" * 10, "theirs": "Once upon a time there was a fox who lived in a wood.", "n": 7}, "theirs"),
    ],
)
def test_the_field_is_found_and_said(tmp_path, row, field):
    source = table(tmp_path, json.dumps([row] * 3))
    assert list(source.documents()) == [row[field]] * 3
    assert source.remarks() == [f"{source.path}: the stories are in its field {field!r} (data.text_field)"]


@pytest.mark.parametrize(("row", "wanted"), [({"id": "a", "n": 1}, "text"), ({"story": "Once."}, "tale")])
def test_a_field_that_is_not_there_names_those_that_are(tmp_path, row, wanted):
    source = table(tmp_path, json.dumps([row]), text_field=wanted)
    with pytest.raises(DataError, match=f"no field {wanted!r}; set data.text_field to one of: {', '.join(row)}"):
        list(source.documents())


GOOD = [json.dumps({"text": f"Story {i}."}) for i in range(40)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"text": "Story', "line 21 is not JSON: "),
        ("nonsense", "line 21 is not JSON: "),
        ('{"text": 7}', "row 21 has int and no text in its field 'text'"),
        ('{"text": "a<|endoftext|>b"}', "row 21 has <|endoftext|> within its text"),
        ('{"text": "a\\u0000b"}', "row 21 has characters that no text has"),
        ('{"text": "a\\ud800b"}', "row 21 has characters that no text has"),
    ],
)
def test_a_bad_row_is_an_error_unless_a_share_of_them_is_allowed(tmp_path, bad, reason):
    content = "\n".join([*GOOD[:20], bad, *GOOD[20:]])
    assert refused(table(tmp_path, content)).startswith(reason)
    source = table(tmp_path, content, bad_rows=0.025)
    assert list(source.documents()) == [f"Story {i}." for i in range(40)]
    (remark,) = source.remarks()
    assert remark.startswith(f"{source.path}: 1 malformed rows are left out; the first: {reason}")
    message = refused(table(tmp_path, content, bad_rows=0.02))
    assert message.endswith(
        "(1 of 41 rows are bad, more than data.bad_rows=0.02 allows); fix it, or set data.bad_rows to the part of the "
        "rows that may be left out"
    )


def test_rows_of_csv_that_are_too_short_or_never_end(tmp_path):
    good = "".join(f'{i},"Once, {i}"\n' for i in range(60))
    assert refused(table(tmp_path, f"id,text\n{good}60\n61,One.\n")).startswith(
        "line 62 is a row of 1 fields in place of 2"
    )
    assert refused(table(tmp_path, f'id,text\n{good}60,"Once\n61,One.\n')).startswith("line 63 is not a row of CSV: ")


def test_a_table_without_names_has_numbered_fields(tmp_path):
    content = "".join(f'{i},"Once upon a time, there was a fox, and it was number {i}."\n' for i in range(60))
    source = table(tmp_path, content)
    assert len(list(source.documents())) == 60
    assert source.remarks() == [f"{source.path}: the stories are in its field 'column 2' (data.text_field)"]


def test_rows_without_text_are_left_out(tmp_path):
    content = '{"text": "One."}\n\n{"text": null}\n{"text": "  "}\n{"id": 3}\n{"text": "Two."}\n'
    assert list(table(tmp_path, content).documents()) == ["One.", "Two."]


@pytest.mark.parametrize("form", ["lines", "array", "CSV"])
def test_a_large_table_is_never_whole_in_memory(tmp_path, form):
    source = table(tmp_path, FORMS[form](["Once upon a time. " * 60] * 20_000))
    assert source.path.stat().st_size > 20e6
    tracemalloc.start()
    assert sum(1 for _ in source.documents()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


def test_a_first_line_that_is_broken_leaves_the_others(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(['{"text": "Story', *GOOD]).encode()))
    with pytest.raises(DataError, match="line 1 is not JSON"):
        list(choose_sources(DataConfig(source=str(path), validation="builtin")).train.documents())
    train = choose_sources(DataConfig(source=str(path), validation="builtin", bad_rows=0.1)).train
    assert list(train.documents()) == [f"Story {i}." for i in range(40)]


def test_what_is_no_json_is_said_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_READ_CHARACTERS", 100)
    monkeypatch.setattr(rows, "LONGEST", 1000)
    content = '[{"text": "One."}, {"text": Two}, ' + ", ".join(GOOD * 100) + "]"
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(DataError, match="value 2 is not JSON: Expecting value"):
        list(choose_sources(DataConfig(source=str(path), validation="builtin")).train.documents())


@pytest.mark.parametrize("form", ["lines", "array", "CSV"])
def test_a_long_text_is_read_and_one_of_fifty_megabytes_refused_before_memory_is_full(tmp_path, form):
    source = table(tmp_path, FORMS[form](["Once.", "word " * 3_000_000, "Twice."] + ["Again."] * 60))
    assert [len(document) for document in source.documents()][:3] == [5, 14_999_999, 6]
    source = table(tmp_path, FORMS[form](["Once.", "word " * 10_000_000, "Twice."] + ["Again."] * 60))
    tracemalloc.start()
    with pytest.raises(
        DataError, match=r"has more than 16,777,216 characters, which no story has; cut it into stories"
    ):
        list(source.documents())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


def test_rows_are_held_out_by_their_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json_lines([f"Story {i}." for i in range(400)]))
    sources = choose_sources(DataConfig(source=str(path)))
    kept, held = (list(source.documents()) for source in sources)
    assert sorted(kept + held) == sorted(f"Story {i}." for i in range(400))
    assert 5 < len(held) < 40


def test_fields_between_tabs_may_be_quoted(tmp_path):
    rows = [["name", "text"], ["a", 'He said "hi".\nThen he left.'], ["b", "A fox ran."], ["c", 'The "end".']]
    path = tmp_path / "quoted.tsv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    assert [*TableFileSource(path, "TSV", "text").documents()] == [text for _, text in rows[1:]]
    # Control: quotation marks inside a field are text.
    path.write_text('name\ttext\na\t"Hello," she said.\nb\t"Yes!" he said. "Run!"\n')
    assert [*TableFileSource(path, "TSV", "text").documents()] == ['"Hello," she said.', '"Yes!" he said. "Run!"']


def test_bad_rows_that_are_allowed_make_another_corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "One."}\n{"text": 3}\n')
    strict, lenient = (TableFileSource(path, "JSON", "text", bad_rows=part) for part in (0.0, 0.5))
    assert strict.fingerprint != lenient.fingerprint
