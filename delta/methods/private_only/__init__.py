"""The method `private-only`: the whole model on the private side."""

from delta.methods.private_only.method import PrivateOnly

__all__ = ["PrivateOnly"]
