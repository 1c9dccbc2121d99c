"""The ledger on disk: what it keeps through reopening, crashes, export and replay."""

import json
import math
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.errors import BudgetExceededError, InputError, LedgerError, PrivacyParameterError
from delta.privacy.disk_ledger import DiskLedger, export, replay
from delta.privacy.events import GaussianRelease, NonPrivateRelease, RandomizedResponseLabel
from delta.privacy.ledger import UNLIMITED, Debit, InMemoryLedger, Ledger
from delta.privacy.ledger_file import read_ledger
from tests.ledgers import DEBIT, SPEND, debit, filled, path, run_python

__all__ = ["filled", "path"]

# What it keeps


def test_entries_and_budget_are_there_after_reopening(filled):
    with DiskLedger(filled) as ledger:
        as_any: Ledger = ledger
        assert as_any.budget == 5.0
        assert ledger.entries() == (
            debit(0),
            debit(1, "bo", 0.1 + 0.2),
            Debit("ada", "f" * 64, RandomizedResponseLabel(1.5)),
            debit(2),
            debit(3, "", 0.25),
            debit(4, "naïve \ud800\n"),
        )
        assert ledger.spent("bo").mu == 0.1 + 0.2
        assert ledger.spent("ada").label_epsilon == 1.5
    assert filled.stat().st_mode & 0o777 == 0o600
    assert read_ledger(filled).entries() == ledger.entries()


def test_known_entries_are_not_written_again(filled):
    before = filled.read_bytes()
    with DiskLedger(filled) as ledger:
        assert ledger.debit([debit(2), debit(0)]) == 0
        assert ledger.debit([]) == 0
    assert filled.read_bytes() == before
    with DiskLedger(filled) as ledger:
        assert ledger.debit([debit(2), debit(7), debit(7)]) == 1
    added = filled.read_bytes()[len(before) :]
    assert added.count(b"\n") == 1
    assert json.loads(added)["debits"][0]["of"] == [["ada", debit(7).release_id]]


events = st.one_of(
    st.floats(1e-3, 3.0).map(GaussianRelease),
    st.sampled_from([GaussianRelease(0.5), RandomizedResponseLabel(0.7), NonPrivateRelease()]),
)
batches = st.lists(
    st.lists(
        st.builds(
            Debit,
            subject=st.one_of(st.sampled_from(["", "ada", "bo"]), st.text(max_size=4)),
            release_id=st.integers(0, 9).map(lambda number: f"{number:032x}"),
            event=events,
        ),
        max_size=5,
    ),
    max_size=6,
)


@settings(max_examples=120, deadline=None)
@given(
    batches=batches,
    reopen=st.lists(st.booleans(), min_size=6, max_size=6),
    budget=st.sampled_from([0.6, 2.0, UNLIMITED]),
)
def test_it_is_the_ledger_in_memory(batches, reopen, budget):
    oracle = InMemoryLedger(budget=budget)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        ledger = DiskLedger(path, budget=budget)
        try:
            for batch, anew in zip(batches, reopen, strict=False):
                assert _tried(ledger, batch) == _tried(oracle, batch)
                if anew:
                    ledger.close()
                    ledger = DiskLedger(path)
                assert ledger.entries() == oracle.entries()
                assert ledger.budget == budget
                for subject in {entry.subject for entry in oracle.entries()} | {"nobody"}:
                    assert ledger.spent(subject) == oracle.spent(subject)
        finally:
            ledger.close()
        assert read_ledger(path).entries() == oracle.entries()


def _tried(ledger, batch):
    try:
        return ledger.debit(batch)
    except (BudgetExceededError, PrivacyParameterError) as error:
        return str(error)


def test_the_budget_is_stored_raised_and_refuses(path):
    with DiskLedger(path, budget=2.0) as ledger:
        ledger.debit([debit(i) for i in range(4)])
        before = path.read_bytes()
        with pytest.raises(BudgetExceededError, match="raise the budget"):
            ledger.debit([debit(4)])
        with pytest.raises(BudgetExceededError, match="unlimited"):
            ledger.debit([debit(4, mu=None)])
        assert path.read_bytes() == before
    with DiskLedger(path) as ledger:
        assert ledger.budget == 2.0
        with pytest.raises(BudgetExceededError):
            ledger.debit([debit(4)])
    with DiskLedger(path, budget=2.0):
        assert path.read_bytes() == before  # the same budget is no news
    with DiskLedger(path, budget=3.0) as ledger:
        assert ledger.debit([debit(4)]) == 1
    with DiskLedger(path, budget=UNLIMITED) as ledger:
        assert ledger.debit([debit(5, mu=None)]) == 1
    with DiskLedger(path) as ledger:
        assert ledger.budget == UNLIMITED
        assert ledger.spent("ada").mu == math.inf
    budgets = [row["budget"] for row in map(json.loads, path.read_text().splitlines()) if "budget" in row]
    assert budgets == [2.0, 3.0, "unlimited"]


def test_a_wrong_budget_makes_no_file(path):
    with pytest.raises(PrivacyParameterError, match="unlimited"):
        DiskLedger(path, budget=-1.0)
    assert not path.exists()


def test_fifty_thousand_entries_are_quick(path):
    entries = [debit(i, subject=f"subject-{i % 977}", mu=1.67) for i in range(50_000)]
    started = time.perf_counter()
    with DiskLedger(path, budget=100.0) as ledger:
        for start in range(0, len(entries), 256):
            ledger.debit(entries[start : start + 256])
    written = time.perf_counter()
    with DiskLedger(path) as ledger:
        assert len(ledger.entries()) == 50_000
    reopened = time.perf_counter()
    assert written - started < 15.0
    assert reopened - written < 10.0
    assert path.stat().st_size < 90 * 50_000


def test_threads_never_overdraw_and_all_that_counts_is_on_disk(path):
    def spend(number):
        try:
            return ledger.debit([debit(number), debit(number + 1000)])
        except BudgetExceededError:
            return 0

    with DiskLedger(path, budget=10.0) as ledger, ThreadPoolExecutor(8) as pool:
        entered = sum(pool.map(spend, range(100)))
        assert entered == len(ledger.entries()) == 100
    assert read_ledger(path).entries() == ledger.entries()
    assert read_ledger(path).spent("ada").mu == 10.0


# Crashes


def test_a_kill_between_debit_and_send_loses_no_debit(path):
    for number in range(3):
        code = SPEND + f"number = {number}\n" + DEBIT + "print('debited', flush=True)\nsys.stdin.read()\n"
        process = run_python(code, path)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "debited\n"
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        with DiskLedger(path) as ledger:
            assert ledger.entries() == tuple(debit(i) for i in range(number + 1))


def test_a_kill_at_any_moment_loses_no_acknowledged_debit(path):
    """The process acknowledges each debit on a pipe; what it has acknowledged is there, and at most one more."""
    code = SPEND + "for number in range(10**6):\n    " + DEBIT + "    print(number, flush=True)\n"
    process = run_python(code, path)
    try:
        assert process.stdout is not None
        for _ in range(25):
            process.stdout.readline()
    finally:
        process.send_signal(signal.SIGKILL)
    acknowledged = 25 + process.stdout.read().count("\n")  # what the pipe still holds was acknowledged too
    process.communicate(timeout=60)
    with DiskLedger(path, warn=lambda line: None) as ledger:
        assert len(ledger.entries()) in (acknowledged, acknowledged + 1)
        assert ledger.entries() == tuple(debit(i) for i in range(len(ledger.entries())))


def test_a_torn_last_line_is_dropped_and_said_at_every_length(filled, tmp_path):
    whole = filled.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    entries = read_ledger(filled).entries()
    for size in range(start, len(whole) + 1):
        copy = tmp_path / "copy.jsonl"
        copy.write_bytes(whole[:size])
        copy.chmod(0o600)
        # A reader leaves the file as it is: the line may be another process's, half written.
        complete = size >= len(whole) - 1
        assert read_ledger(copy).entries() == (entries if complete else entries[:3])
        assert copy.read_bytes() == whole[:size]
        said = []
        with DiskLedger(copy, warn=said.append) as ledger:
            assert ledger.entries() == (entries if complete else entries[:3])
            assert copy.read_bytes() == (whole if complete else whole[:start])
            ledger.debit([debit(9)])
        assert len(said) == (not complete and size > start)
        assert all("cut short" in line and "ada" not in line for line in said)
        with DiskLedger(copy) as ledger:
            assert ledger.entries()[-1] == debit(9)
        copy.unlink()


def test_a_torn_header_is_a_new_ledger_and_another_file_is_left_alone(path, filled, tmp_path):
    header = filled.read_bytes().split(b"\n")[0]
    for size in (*range(0, len(header) + 1, 7), len(header)):
        copy = tmp_path / "copy.jsonl"
        copy.write_bytes(header[:size])
        copy.chmod(0o600)
        with DiskLedger(copy, budget=3.0) as ledger:
            assert (ledger.budget, ledger.entries()) == (3.0, ())
        assert copy.read_bytes() == header + b"\n"
    for text in (b"my thesis", b"my thesis\n", b'{"a":1}\n', b"\n", b"\xff" * 30, b"[" * 100_000):
        copy.write_bytes(text)
        with pytest.raises(LedgerError, match="no ledger"):
            DiskLedger(copy)
        assert copy.read_bytes() == text


def test_an_absent_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "ledger.jsonl"
    with DiskLedger(path) as ledger:
        ledger.debit([debit(0)])
    assert read_ledger(path).entries() == (debit(0),)


# Export and replay


def test_an_export_stands_for_the_ledger(filled, tmp_path):
    out = tmp_path / "export.jsonl"
    entries = read_ledger(filled).entries()
    with DiskLedger(filled) as ledger:
        assert export(ledger, out) == len(entries)
        with pytest.raises(LedgerError, match="exists"):
            export(ledger, out)
        with pytest.raises(LedgerError, match="exists"):
            export(ledger, filled)
        with pytest.raises(InputError, match="cannot be written"):
            export(ledger, filled / "inside")
    assert out.stat().st_mode & 0o777 == 0o600
    with DiskLedger(out) as copy:
        assert (copy.budget, copy.entries()) == (5.0, entries)


def test_a_long_export_is_whole(tmp_path):
    entries = [debit(i, subject=f"{i % 3}") for i in range(2500)]
    assert export(InMemoryLedger(budget=UNLIMITED, entries=entries), tmp_path / "out") == 2500
    assert read_ledger(tmp_path / "out").entries() == tuple(entries)


def test_replay_adds_what_is_new_and_refuses_no_budget(filled, tmp_path):
    other = tmp_path / "other.jsonl"
    with DiskLedger(other) as ledger:
        ledger.debit([debit(0), *(debit(i) for i in range(100, 164))])
    with DiskLedger(filled) as ledger:
        assert ledger.budget == 5.0
        assert replay([other, other], ledger) == 64
        assert replay([other, filled], ledger) == 0
        assert ledger.spent("ada").mu == math.sqrt(2 + 64)
        with pytest.raises(BudgetExceededError):
            ledger.debit([debit(200)])
    assert read_ledger(filled).spent("ada").mu == math.sqrt(2 + 64)


def test_a_replay_that_contradicts_enters_nothing(filled, tmp_path):
    good, bad, spoiled = (tmp_path / name for name in ("good", "bad", "spoiled"))
    for source, entries in (
        (good, [debit(50)]),
        (bad, [debit(51), debit(0, mu=2.0)]),
        (spoiled, [debit(52)]),
    ):
        with DiskLedger(source) as ledger:
            ledger.debit(entries)
    spoiled.write_bytes(spoiled.read_bytes().replace(b"ada", b"eve"))
    before = filled.read_bytes()
    with DiskLedger(filled) as ledger:
        with pytest.raises(PrivacyParameterError, match="release_hash"):
            replay([good, bad], ledger)
        with pytest.raises(LedgerError, match="damaged"):
            replay([good, spoiled], ledger)
        with pytest.raises(LedgerError, match="cannot be read"):
            replay([good, tmp_path / "absent"], ledger)
        assert debit(50) not in ledger.entries()
    assert filled.read_bytes() == before
