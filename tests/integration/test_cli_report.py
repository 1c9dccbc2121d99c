"""`delta report` as a command."""

import json

from delta.errors import InputError
from tests import report_runs
from tests.commands import fails


def test_the_command_writes_the_page(run, tmp_path):
    source = tmp_path / "audit.json"
    source.write_text(json.dumps(report_runs.audit()))
    done = run("report", source, "--out", tmp_path / "new" / "page.html", "--title", "Mine & yours")
    assert (done.code, done.err) == (0, "")
    page = (tmp_path / "new" / "page.html").read_text()
    assert "<h1>Mine &amp; yours</h1>" in page
    assert "Not rejected" in page
    assert "page.html" in done.out


def test_the_command_refuses_what_it_cannot_read_or_write(run, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(report_runs.audit()))
    bad.write_text('{"kind": "poem"}')
    out = tmp_path / "page.html"
    fails(run("report", tmp_path / "none.json", "--out", out), InputError, "none.json", "No such file")
    fails(run("report", good, bad, "--out", out), InputError, "bad.json", "poem", "frontier")
    fails(run("report", good, "--out", good / "page.html"), InputError, "cannot be written")
    fails(run("report", good, "--out", tmp_path), InputError, "cannot be written")
    assert not out.exists()
