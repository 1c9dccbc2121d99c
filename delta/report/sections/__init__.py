"""One module a kind of figures: from runs to sections of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from delta.report.charts import Canvas
from delta.report.kinds import Kind
from delta.report.read import Run
from delta.report.section import Section
from delta.report.sections.attack import attack_sections
from delta.report.sections.audit import audit_sections
from delta.report.sections.bench import bench_sections
from delta.report.sections.demo import demo_sections
from delta.report.sections.frontier import frontier_sections
from delta.report.sections.membership import membership_sections
from delta.report.sections.train import train_sections

__all__ = ["SECTIONS", "Build"]

Build = Callable[[Sequence[Run], Canvas, bool], list[Section]]
"""Runs of one kind, the page's charts, and whether records of a user's own data may be shown."""

SECTIONS: dict[Kind, Build] = {
    "frontier": frontier_sections,
    "attack": attack_sections,
    "membership": membership_sections,
    "audit": audit_sections,
    "train": train_sections,
    "demo": demo_sections,
    "bench-latency": bench_sections,
    "bench-scale": bench_sections,
}
