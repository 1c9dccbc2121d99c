"""Clouds and commands for the tests of this folder."""

import delta_server.log
import pytest

from delta.cli.app import main
from tests.cloud_fixtures import toy_cloud, toy_dir
from tests.commands import Outcome

__all__ = ["run", "toy_cloud", "toy_dir"]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command in this process."""
    monkeypatch.setattr(delta_server.log, "log_to_stderr", lambda: None)  # a handler would outlive the test

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return call
