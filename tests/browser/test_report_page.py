"""The report in a real browser, from a file and with the network off: charts, pictures, hover, width, colours."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from delta.report.figures import Figures
from delta.report.page import render_report
from delta.report.read import Run, read_runs
from tests import report_runs

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = {"phone": (390, 844), "desktop": (1440, 900)}
EVIL = "<script>window.ran = true</script><img src=x onerror='window.ran = true'>"


def _chromium():
    """The browser that `make test-browser` found; without one the test fails, and says what to do."""
    named = os.environ.get("CHROME")
    path = (
        shutil.which(named)
        if named
        else next((found for name in NAMES if (found := shutil.which(name))), None)
    )
    if path is None:
        pytest.fail("no Chromium: run make test-browser, which installs one, or set CHROME", pytrace=False)
    return path


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    # The sandbox needs rights that containers do not give; the page is our own.
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page for each of the kinds that people read most, and one of everything."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {
        "everything": [Run(v["kind"], Figures(v), "x.json") for v in report_runs.everything()],
        "demo": [Run("demo", Figures(report_runs.demo()), "demo.json")],
        "trainings": read_runs([ROOT / "docs" / "results" / "cifar10-resnet18.jsonl"]),
        "benchmark": read_runs([ROOT / "docs" / "results" / "benchmark-two-cores.json"]),
    }
    paths = {name: folder / f"{name}.html" for name in runs}
    for name, some in runs.items():
        paths[name].write_text(render_report(some))
    return paths


class _Opened:
    """A page, and whatever went wrong or was asked for while it was open."""

    def __init__(self, browser, path, *, size, scheme="light"):
        width, height = size
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: self._told(message))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        count = self.page.evaluate("document.querySelectorAll('.plot').length")
        self.page.wait_for_function(
            "count => document.querySelectorAll('.plot .main-svg').length >= count", arg=count, timeout=20_000
        )

    def _told(self, message):
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def asked(self):
        """Requests that are neither the file itself nor a picture inside it."""
        return [url for url in self.requests[1:] if not url.startswith(("data:", "blob:"))]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["everything", "demo", "trainings", "benchmark"])
def test_a_page_is_drawn_whole_offline(browser, pages, name, width):
    with _Opened(browser, pages[name], size=WIDTHS[width]) as opened:
        page = opened.page
        sizes = page.evaluate(
            "[...document.querySelectorAll('.plot')].map(place => {"
            " const box = place.querySelector('.main-svg').getBoundingClientRect();"
            " return [box.width, box.height, place.querySelectorAll('.point').length]; })"
        )
        assert sizes
        assert all(w > 250 and h > 100 and points > 0 for w, h, points in sizes)
        pictures = page.evaluate(
            "[...document.images].map(one => [one.complete, one.naturalWidth, one.getBoundingClientRect().width])"
        )
        assert (len(pictures) > 0) == (name in {"everything", "demo"})
        assert all(complete and natural > 0 and shown > 40 for complete, natural, shown in pictures)
        # Nothing is wider than the window but what scrolls in a box of its own.
        assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
        assert opened.asked() == []
        assert opened.requests[0].startswith("file://")
        assert opened.errors == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_wide_table_scrolls_in_its_own_box(browser, pages, width):
    with _Opened(browser, pages["everything"], size=WIDTHS[width]) as opened:
        boxes = opened.page.evaluate(
            "[...document.querySelectorAll('.scroll')].map(box => [box.clientWidth, box.scrollWidth])"
        )
        assert any(inner > box for box, inner in boxes)
        assert all(box <= WIDTHS[width][0] for box, _ in boxes)


def _hover(page, chart):
    """Point at a dot of a chart; gives the label that appears."""
    page.locator(chart).scroll_into_view_if_needed()
    point = page.evaluate(
        "selector => { const dot = document.querySelector(`${selector} .point`).getBoundingClientRect();"
        " return [dot.x + dot.width / 2, dot.y + dot.height / 2]; }",
        chart,
    )
    page.mouse.move(point[0] - 30, point[1])
    page.mouse.move(*point, steps=5)
    label = page.locator(f"{chart} .hoverlayer .hovertext")
    label.first.wait_for(state="visible", timeout=5000)
    return label.first.text_content()


@pytest.mark.parametrize("width", WIDTHS)
def test_hover_shows_the_settings_of_a_point(browser, pages, width):
    with _Opened(browser, pages["everything"], size=WIDTHS[width]) as opened:
        text = _hover(opened.page, "#chart-0")
        for words in ("private macs", "rank: 8", "noise", "SSIM"):
            assert words in text


def test_a_drag_zooms_and_a_double_click_comes_back(browser, pages):
    with _Opened(browser, pages["everything"], size=WIDTHS["desktop"]) as opened:
        page = opened.page
        page.locator("#chart-0").scroll_into_view_if_needed()
        box = page.locator("#chart-0 .nsewdrag").first.bounding_box()
        span = "(() => { const [a, b] = document.getElementById('chart-0')._fullLayout.xaxis.range; return b - a; })()"
        before = page.evaluate(span)
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=8)
        page.mouse.up()
        page.wait_for_function(f"{span} < {0.5 * before}", timeout=5000)
        page.mouse.dblclick(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
        page.wait_for_function(f"Math.abs({span} - {before}) < 1e-9", timeout=5000)


def test_a_button_shows_another_view(browser, pages):
    with _Opened(browser, pages["everything"], size=WIDTHS["phone"]) as opened:
        page = opened.page
        title = page.locator("#chart-0 .xtitle")
        assert "SSIM" in title.text_content()
        page.locator('[data-chart="0"] button', has_text="matching").click()
        page.wait_for_function("document.querySelector('#chart-0 .xtitle').textContent.includes('matched')")
        pressed = page.locator('[data-chart="0"] button[aria-pressed="true"]')
        assert pressed.all_text_contents() == ["matching"]
        assert opened.errors == []


def _colours(page):
    return page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " document.querySelector('#chart-0 .xtitle').style.fill,"
        " getComputedStyle(document.querySelector('figcaption')).color]"
    )


def _contrast(one, other):
    """WCAG 2's contrast of two colours."""

    def light(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark_follow_the_system_and_can_be_read(browser, pages):
    found = {}
    for scheme in ("light", "dark"):
        with _Opened(browser, pages["everything"], size=WIDTHS["desktop"], scheme=scheme) as opened:
            paper, ink, chart, caption = found[scheme] = _colours(opened.page)
            assert _contrast(paper, ink) > 7
            assert _contrast(paper, chart) > 7  # the chart's text has the page's colour
            assert _contrast(paper, caption) > 4.5
            assert opened.errors == []
    assert found["light"][0] != found["dark"][0]


def test_charts_are_painted_anew_where_the_scheme_changes(browser, pages):
    with _Opened(browser, pages["benchmark"], size=WIDTHS["desktop"]) as opened:
        before = _colours(opened.page)[2]
        opened.page.emulate_media(color_scheme="dark")
        opened.page.wait_for_function(
            "before => document.querySelector('#chart-0 .xtitle').style.fill !== before",
            arg=before,
            timeout=5000,
        )


def test_what_stands_in_the_figures_does_not_run(browser, tmp_path):
    value = report_runs.frontier(name=EVIL, dataset=EVIL)
    for one in value["points"]:
        one["settings"]["message"] = EVIL
    path = tmp_path / "evil.html"
    path.write_text(render_report([Run("frontier", Figures(value), EVIL)], title=EVIL))
    with _Opened(browser, path, size=WIDTHS["desktop"]) as opened:
        assert "<script>window.ran" in _hover(opened.page, "#chart-0")  # as text
        assert opened.page.evaluate("window.ran") is None
        assert opened.page.evaluate("document.images.length") == 0
        assert opened.asked() == []
        assert opened.errors == []


def test_the_command_makes_a_page_that_opens(browser, tmp_path):
    source, out = tmp_path / "audit.json", tmp_path / "page.html"
    source.write_text(json.dumps(report_runs.audit()))
    command = [sys.executable, "-m", "delta.cli", "report", str(source), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with _Opened(browser, out, size=WIDTHS["phone"]) as opened:
        assert "Not rejected" in opened.page.locator(".verdict").first.text_content()
        assert opened.errors == []
