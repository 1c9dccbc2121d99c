"""The `delta` command: the composition root, thin."""

from delta.cli.app import main

__all__ = ["main"]
