"""The report in a real browser: every figure is drawn, nothing fails, and the page fits a phone."""

import shutil

import pytest

from storyteller_ds.report.page import write_report
from storyteller_ds.report.run_records import read_run
from tests.support.recorded_runs import finished_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; `make test-browser` installs it")
SIZES = {"wide": (1280, 900), "phone": (390, 844)}
FIGURES = """() => [...document.querySelectorAll('figure')].map(figure => {
  const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
  const inks = [...svg.querySelectorAll('path, image')].filter(each => each.getBoundingClientRect().width > 20);
  const text = svg.querySelector('text');
  return {id: figure.id, width: box.width, height: box.height, drawn: inks.length,
          ink: getComputedStyle(text).fill, size: parseFloat(getComputedStyle(text).fontSize) * box.width
               / svg.viewBox.baseVal.width, broken: [...svg.querySelectorAll('image')].length};
})"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=60_000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = finished_run(tmp_path_factory.mktemp("runs") / "a run")
    write_report([read_run(folder)], folder)
    return folder / "report.html"


def opened(browser, page_file, size, scheme):
    width, height = SIZES[size]
    page = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    ).new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto(page_file.as_uri(), wait_until="load", timeout=60_000)
    return page, problems


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn(browser, report, size, scheme):
    page, problems = opened(browser, report, size, scheme)
    figures = page.evaluate(FIGURES)
    assert len(figures) == 12
    ink = {"light": "rgb(27, 29, 32)", "dark": "rgb(230, 232, 234)"}[scheme]
    for figure in figures:
        assert figure["width"] > 250, figure
        assert figure["height"] > 150, figure
        assert figure["drawn"] > 1, figure
        assert figure["ink"] == ink, figure
        assert figure["size"] > 9, figure  # CSS pixels: still legible
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert problems == []


def test_a_figure_that_is_not_drawn_is_seen(browser, report, tmp_path):
    # Control: the same page with an empty figure and a failing script.
    text = report.read_text()
    start = text.index("<svg")
    end = text.index("</svg>", start)
    head = text[start : text.index(">", start) + 1]
    broken = text[:start] + head + "<text>x</text>" + text[end:] + "<script>missing()</script>"
    (tmp_path / "broken.html").write_text(broken)
    page, problems = opened(browser, tmp_path / "broken.html", "wide", "light")
    assert page.evaluate(FIGURES)[0]["drawn"] == 0
    assert any("missing" in problem for problem in problems)
