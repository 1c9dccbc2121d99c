"""The demonstration's page: the report of its one run, which opens offline."""

from __future__ import annotations

from delta.demo.experiment import DemoResult
from delta.demo.summary import summarise
from delta.report.figures import Figures
from delta.report.page import render_report
from delta.report.read import Run

__all__ = ["render_page"]

_TITLE = "Delta demo: what stayed, what left, what it gave away"


def render_page(result: DemoResult, *, gallery: int, show_records: bool) -> str:
    """The page as a string. With `show_records` it holds private records, and says so at its top (I6).

    Raises:
        ConfigError: plotly is not installed.
    """
    run = Run("demo", Figures(summarise(result, examples=gallery)), "summary.json")
    return render_report([run], title=_TITLE, include_records=show_records)
