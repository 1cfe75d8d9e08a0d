"""report.html and report.md."""

import re
from html.parser import HTMLParser

import pytest

from storyteller_ds.report.page import write_report
from storyteller_ds.report.run_records import read_run
from tests.support.recorded_runs import finished_run, train_record, write_run


class Tags(HTMLParser):
    """Collects the tags of a page, and what they refer to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]


def written(folders, into):
    write_report([read_run(folder) for folder in folders], into)
    return (into / "report.html").read_text(), (into / "report.md").read_text()


def test_a_page_of_one_file(tmp_path):
    page, markdown = written([finished_run(tmp_path / "fox")], tmp_path / "fox")
    tags = Tags(page)
    assert tags.tags.count("svg") == tags.tags.count("figure") == 12
    assert "script" not in tags.tags
    # Nothing is fetched: every reference stays within the page.
    assert all(each.startswith(("#", "data:")) for each in tags.references)
    anchors = {each[1:] for each in tags.references if each.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]+)"', page))
    for words in ("1.1000", "Finished after 60 steps", "storyteller train --config quickstart", "2 x imagined"):
        assert words in page
        assert words in markdown
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", markdown)
    assert len(pictures) == 12
    assert all((tmp_path / "fox" / picture).stat().st_size > 1000 for picture in pictures)


def test_text_of_strangers_stays_text(tmp_path):
    bad = "<script>alert(1)</script>"
    folder = finished_run(tmp_path / "a & b", **{"tracking.run_name": bad, "data.source": f"{bad}.txt"})
    (folder / "samples.md").write_text(f"## Step 5\n\n> **Once** {bad} [x](javascript:alert(1)) <img src=x>\n\n")
    page, _ = written([folder], folder)
    tags = Tags(page)
    assert "script" not in tags.tags
    assert "img" not in tags.tags
    assert not [each for each in tags.references if each.startswith("javascript")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &amp; b" in page


def test_a_long_run_stays_small(tmp_path):
    records = [train_record(step) for step in range(1, 4001)]
    page, _ = written([write_run(tmp_path / "a", records)], tmp_path / "a")
    assert len(page.encode()) < 3_000_000


def test_an_empty_run_has_a_page_that_says_what_is_missing(tmp_path):
    page, markdown = written([write_run(tmp_path / "a", [])], tmp_path / "a")
    assert "svg" not in Tags(page).tags
    assert "no step is logged yet" in page
    assert "no step is logged yet" in markdown
    assert not (tmp_path / "a" / "report").exists()


def test_runs_side_by_side(tmp_path):
    fox, hare = finished_run(tmp_path / "fox"), finished_run(tmp_path / "hare", seed=1, **{"optimizer.lr": 0.5})
    page, _ = written([fox, hare], tmp_path)
    assert "optimizer.lr" in page
    assert "tokenizers differ" not in page
    (hare / "tokenizer.json").write_text("{ }")
    page, _ = written([fox, hare], tmp_path)
    assert "the tokenizers differ: only bits per byte are compared" in page
    assert 'id="loss"' not in page


def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path):
    folder = finished_run(tmp_path / "a")
    before, _ = written([folder], folder)
    (folder / "report.md").unlink()
    (folder / "report.md").mkdir()
    with pytest.raises(OSError, match=r"report\.md"):
        written([folder], folder)
    assert (folder / "report.html").read_text() == before
