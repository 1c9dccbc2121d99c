"""The method `main-only`: a small private model alone, of a given budget."""

from delta.methods.main_only.method import MainOnly

__all__ = ["MainOnly"]
