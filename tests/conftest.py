"""What several test files share: one trained Delta, once a session."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the command sets it, before gRPC is imported

import pytest
import torch

from delta.bundle.store import save_bundle
from delta.data.records import DataSplits
from tests.trained import Trained, small_digits, train_all

torch.set_num_threads(1)  # the models of the tests are tiny: a second thread costs more than it gives


@pytest.fixture(scope="session")
def digits() -> DataSplits:
    """600 digits to train on, 100 to test on, 1×16×16."""
    return small_digits()


@pytest.fixture(scope="session")
def trained(digits: DataSplits) -> Trained:
    """Bundles `none`, `noise`, `principal` and `svd`; nobody may change them."""
    return train_all(digits)


@pytest.fixture(scope="session")
def bundle_dirs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles on disk, each in a folder of its own; nobody may change them."""
    return {
        name: save_bundle(bundle, tmp_path_factory.mktemp(name) / "bundle")
        for name, bundle in trained.bundles.items()
    }
