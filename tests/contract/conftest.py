"""Clouds for the tests of this folder."""

from tests.cloud_fixtures import toy_cloud, toy_dir

__all__ = ["toy_cloud", "toy_dir"]
