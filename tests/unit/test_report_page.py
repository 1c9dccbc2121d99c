"""The page: whole, escaped, offline, and honest about records."""

import html.parser
import itertools
import json
import re
import sys

import pytest

from delta.errors import ConfigError
from delta.report.charts import Canvas, Chart, Dot, Series, dots, plotly_script
from delta.report.figures import Figures
from delta.report.gallery import gallery
from delta.report.markup import element
from delta.report.page import render_report
from delta.report.read import Run
from tests import report_runs

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)>"\' onload="x'


def _page(*values, **settings):
    return render_report([Run(v["kind"], Figures(v), "x.json") for v in values], **settings)


def _own(page):
    """The page without what plotly.js brings."""
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


class _Reader(html.parser.HTMLParser):
    """Elements in order, checked for balance."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _elements(page):
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    return reader.found


@pytest.fixture(scope="module")
def whole():
    return _page(*report_runs.everything())


def test_the_page_is_well_formed_and_has_a_section_for_every_kind(whole):
    elements = _elements(whole)
    headings = [tag for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    for above, below in itertools.pairwise(headings):
        assert int(below[1]) <= int(above[1]) + 1  # no level is left out
    assert dict(elements[0][1])["lang"] == "en"
    for words in (
        "Frontier of",
        "Attacks on",
        "Membership",
        "Audit",
        "Training on",
        "Demonstration",
        "Cost:",
        "How costs grow",
    ):
        assert f">{words}" in whole
    assert "TEE: simulated" in whole
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for tag, attributes in elements if tag == "a"}
    assert targets <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")


def test_nothing_outside_the_page_is_asked_for(whole):
    own = _own(whole)
    assert not re.search(r"""(?:href|src|url|action)\s*[=(]\s*["']?(?!data:|#)\w*:?//""", own)
    sources = [attributes["src"] for tag, attributes in _elements(own) if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    policy = next(attributes["content"] for _, attributes in _elements(own) if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_strings_of_the_figures_are_text():
    def poisoned(value):
        if isinstance(value, dict):
            return {f"{key}": poisoned(one) for key, one in value.items()}
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        return EVIL if isinstance(value, str) else value

    values = [{**poisoned(value), "kind": value["kind"]} for value in report_runs.everything()]
    page = _page(*values, title=EVIL)
    elements = _elements(page)
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)
    assert [tag for tag, _ in elements].count("script") == 3  # the charts, plotly.js, ours
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    data = json.loads(re.search(r'<script id="charts"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    assert "<script" not in json.dumps(data).replace("&lt;script", "")


def test_figures_that_are_not_finite_do_not_break_a_chart(tmp_path):
    value = report_runs.frontier()
    for one in value["points"]:
        one["ssim"] = float("nan")
        one["accuracy"]["main_only"] = float("inf")
    page = _page(value)
    assert "NaN" not in _own(page)
    assert "Infinity" not in _own(page)
    assert ">–<" in page


@pytest.mark.parametrize(
    "kind", ["frontier", "attack", "membership", "audit", "train", "demo", "bench-latency"]
)
def test_a_run_without_most_of_its_figures_still_makes_a_page(kind):
    lists = {"frontier": "points", "attack": "taps", "membership": "membership", "bench-latency": "rows"}
    value = {"kind": kind, **({lists[kind]: [{}]} if kind in lists else {})}
    assert "<h1>" in _page(value)


@pytest.mark.parametrize("make", [report_runs.attack, report_runs.demo])
def test_records_of_a_users_own_data_need_to_be_asked_for(make):
    mine = make(source="photos/") | {"dataset": "embedded", "data": "embedded"}  # a folder of that name
    hidden, shown = _page(mine), _page(mine, include_records=True)
    assert "<img" not in hidden
    assert "--include-records" in hidden
    assert "contains private records" not in hidden
    assert shown.count("<img") >= 12
    assert "This page contains private records." in shown
    assert shown.index("contains private records") < shown.index("<h2")
    assert "<img" not in _page({**make(), "source": None})
    assert "<img" in _page(make())  # the embedded digits are nobody's own
    assert "private records" not in _page(make(pictures=0))


def test_a_picture_that_is_none_is_left_out():
    evil = {
        "original": "javascript:alert(1)",
        "seen": 'x" onerror="y',
        "drawn": report_runs.png(1),
        "matched": True,
    }
    cards = gallery([Figures(evil)], what="record")
    assert cards.count("<img") == 1
    assert "alert" not in cards
    assert "onerror" not in cards
    assert "matched" in cards


def test_the_hover_of_a_frontier_has_the_settings():
    page = _page(report_runs.frontier())
    data = json.loads(re.search(r'<script id="charts"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    views = data[0]["views"]
    assert len(views) == 4  # reconstruction, matching, label, membership
    hover = views[0]["data"][0]["customdata"][0]
    for words in ("private macs: 5.00 M", "rank: 8", "noise: ε = 8", "offload: residual", "SSIM 0.20"):
        assert words in hover
    symbols = {symbol for trace in views[0]["data"] for symbol in trace["marker"]["symbol"]}
    assert any(symbol.endswith("-open") for symbol in symbols)
    assert any(not symbol.endswith("-open") for symbol in symbols)  # the Pareto set is filled


def test_ranges_reach_from_the_lowest_to_the_highest():
    dot = Dot(5.0, "row", ("x",), low=4.0, high=7.5)
    (trace,) = dots([Series("s", (dot,))], x={}).data
    assert (trace["error_x"]["array"], trace["error_x"]["arrayminus"]) == ([2.5], [1.0])


def test_a_chart_cannot_end_its_own_element():
    canvas = Canvas()
    canvas.add(Chart("t", "c", (dots([Series("</script>", (Dot(1.0, "a", ("</script>",)),))], x={}),)))
    assert "<" not in canvas.to_json()


def test_attributes_and_text_are_escaped():
    made = element("p", '<b>"&', title='"><script>')
    assert made == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&quot;&amp;</p>'


def test_without_plotly_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"delta-split\[report\]"):
        plotly_script()


def test_trainings_that_differ_in_their_seed_are_shown_together():
    noisy = {
        "accuracy": report_runs.accuracy(delta=94.0),
        "cloud_helps": False,
        "privacy": report_runs.privacy(8.0),
    }
    runs = [report_runs.train(seed=seed, **more) for seed in (0, 1) for more in ({}, noisy)]
    page = _page(*runs)
    assert "in any of these 4 runs: the cloud adds +0.0 to +2.4 points" in page
    assert "beyond chance in 2 of them" in page
    assert ">4</td>" in page  # one row of four runs
    assert ">0, 1</td>" in page
    assert page.count("What may be claimed, and under which conditions") == 1
    assert page.count("labels: disclosed to the cloud") == 2  # of each claim once


def test_the_strongest_attack_is_named_and_each_has_a_row():
    values = report_runs.attack()
    search = {**report_runs.tap("release", 1, 0.7), "attack": "optimisation from the drawing"}
    search["search"] = {"steps": 300, "victims": 64}
    del search["decoder"]
    gan = {**report_runs.tap("release", 1, 0.5), "attack": "cgan, adversarial alone"}
    gan["cgan"] = gan.pop("decoder")
    values["taps"] += [gan, search]
    values["strongest"] = [
        {"tap": "release", "attack": "decoder", "looks": 5, "ssim": 0.61, "victims": 1000},
        {"tap": "raw-ir", "attack": "decoder", "looks": 1, "ssim": 0.95, "victims": 1000},
    ]
    text = _own(_page(values))
    assert "decoder; with nothing: 0.18" in text  # a search of 64 easier records is not what is quoted
    assert "SSIM 0.61" in text
    assert "cgan, adversarial alone" in text
    assert "300 steps, 64 victims alone" in text
    assert "release: optimisation from the drawing" in _page(values)
