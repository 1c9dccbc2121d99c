"""Clouds for tests: a bundle of the toy method, and real server processes that host it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from delta_server.launch import ServerProcess

from delta.bundle.store import save_bundle
from tests.toy_method import toy_bundle

PLUGIN = "tests.toy_method"


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(toy_bundle(), tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def toy_cloud(toy_dir: Path) -> Iterator[ServerProcess]:
    with ServerProcess.start(toy_dir, plugins=[PLUGIN], threads=1) as server:
        yield server
