"""A ledger on disk for tests, and a process of its own that holds one."""

import subprocess
import sys

import pytest

from delta.privacy.disk_ledger import DiskLedger
from delta.privacy.events import GaussianRelease, NonPrivateRelease, RandomizedResponseLabel
from delta.privacy.ledger import Debit

__all__ = ["DEBIT", "SPEND", "debit", "filled", "path", "run_python"]


def debit(number, subject="ada", mu=1.0):
    return Debit(subject, f"{number:064x}", NonPrivateRelease() if mu is None else GaussianRelease(mu))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def filled(path):
    """Three batches, the last one long, under a budget that was raised once."""
    with DiskLedger(path, budget=3.0) as ledger:
        ledger.debit([debit(0), debit(1, "bo", 0.1 + 0.2)])
        ledger.debit([Debit("ada", "f" * 64, RandomizedResponseLabel(1.5))])
    with DiskLedger(path, budget=5.0) as ledger:
        ledger.debit([debit(2), debit(3, "", 0.25), debit(4, "naïve \ud800\n")])
    return path


def run_python(code, *arguments):
    """A real process that imports the ledger and does as told."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SPEND = """
import sys
from pathlib import Path
from delta.privacy.disk_ledger import DiskLedger
from delta.privacy.events import GaussianRelease
from delta.privacy.ledger import Debit
ledger = DiskLedger(Path(sys.argv[1]))
"""
DEBIT = 'ledger.debit([Debit("ada", f"{number:064x}", GaussianRelease(1.0))])\n'
