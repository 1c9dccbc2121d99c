"""One self-contained HTML page from the figures of any run: `delta report`."""

from __future__ import annotations

from delta.report.page import render_report
from delta.report.read import read_runs

__all__ = ["read_runs", "render_report"]
