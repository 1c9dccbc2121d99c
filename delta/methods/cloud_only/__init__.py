"""The method `cloud-only`: the whole model in the cloud, no privacy."""

from delta.methods.cloud_only.method import CloudOnly

__all__ = ["CloudOnly"]
