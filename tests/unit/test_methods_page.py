"""docs/methods.md says of each method what the method says of itself."""

import re
from pathlib import Path

import pytest

from delta.methods.registry import method_class, method_names

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"
_ROW = re.compile(r"\| \[`([a-z-]+)`\]\(([^)]+)\) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+) \|")
ROWS = {row[0]: row for row in _ROW.findall(PAGE.read_text())}
OURS = [name for name in method_names() if method_class(name).__module__.startswith("delta.methods.")]


@pytest.mark.parametrize("name", OURS)
def test_the_page_agrees_with_the_method(name):
    facts = method_class(name).facts
    _, link, protects, rests_on, keeps, trains, what = ROWS[name]
    assert protects == (", ".join(facts.protects) or "nothing")
    assert rests_on == ", ".join(facts.rests_on)
    assert keeps == " ".join(sorted(facts.keeps))
    assert (trains == "yes") == facts.trains
    assert what
    assert (PAGE.parent / link).is_file()


def test_the_page_lists_no_other_method():
    assert set(ROWS) == set(OURS)
