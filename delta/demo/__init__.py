"""The demonstration: real images, two processes, three releases, what each costs and what each gives away."""

from delta.demo.experiment import DemoResult, Row, run_demo
from delta.demo.page import render_page
from delta.demo.settings import DemoSettings
from delta.demo.summary import summarise

__all__ = ["DemoResult", "DemoSettings", "Row", "render_page", "run_demo", "summarise"]
