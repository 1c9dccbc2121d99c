"""What a run sends last: a failure of it is kept until the figures are written, and nothing private decides it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from delta.cli.run_outbound import Outbound
from delta.data.records import DataSplits
from delta.errors import CloudMismatchError
from delta.training.run_config import RunConfig
from tests.trained import Trained

CONFIG = Path(__file__).parents[2] / "configs" / "embedded.yaml"


class Cloud:
    def __init__(self, refuses: bool = False) -> None:
        self.calls: list[str] = []
        self._refuses = refuses

    def promote(self, dataset, job, manifest):
        self.calls.append("promote")
        if self._refuses:
            raise CloudMismatchError("a model of that name is served here already")

    def delete(self, dataset):
        self.calls.append("delete")


def _send(trained: Trained, changes, *, refuses=False, public=None, forget=True):
    cloud, session = Cloud(refuses), ExitStack()
    session.callback(lambda: cloud.calls.append("close"))
    run = RunConfig.read(CONFIG, changes=changes)
    outbound = Outbound(run, cloud, session, public=public, forget=forget)
    outbound(trained.stages["none"], trained.bundles["none"])
    return cloud.calls, outbound


def test_always_and_never(trained):
    assert _send(trained, ("promote=always",))[0] == ["promote", "delete", "close"]
    assert _send(trained, ("promote=never",), forget=False)[0] == ["close"]


def test_a_refused_promotion_is_kept_and_the_data_set_still_forgotten(trained):
    calls, outbound = _send(trained, ("promote=always",), refuses=True)
    assert calls == ["promote", "delete", "close"]
    assert isinstance(outbound.failure, CloudMismatchError)
    assert (outbound.promoted, outbound.forgotten) == (False, True)
    assert outbound.lines() == ["the cloud has deleted the data set and its jobs"]


@pytest.mark.parametrize(("least", "served"), [(0.0, True), (100.0, False)])
def test_public_records_decide_and_what_they_said_is_told(trained, digits: DataSplits, least, served):
    promote = f"promote={{public_data: embedded, min_cloud_accuracy: {least}}}"
    calls, outbound = _send(trained, (promote,), public=digits.test, forget=False)
    assert calls == (["promote", "close"] if served else ["close"])
    assert outbound.public_accuracy is not None
    assert outbound.promoted == served
    assert len(outbound.lines()) == 1
