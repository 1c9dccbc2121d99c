"""The ledger on disk: what damage, a full disk, a second writer or another program may do to it."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from delta.errors import LedgerError
from delta.privacy.disk_ledger import DiskLedger, export
from delta.privacy.ledger import UNLIMITED
from delta.privacy.ledger_file import read_ledger
from tests.ledgers import DEBIT, SPEND, debit, filled, path, run_python

__all__ = ["filled", "path"]

# Damage


def test_a_flipped_bit_anywhere_is_refused(filled):
    whole = filled.read_bytes()
    for position in range(len(whole)):
        spoiled = bytearray(whole)
        spoiled[position] ^= 1 << (position % 8)
        filled.write_bytes(spoiled)
        with pytest.raises(LedgerError, match=r"damaged|version"):
            DiskLedger(filled)
        assert filled.read_bytes() == spoiled


def test_lines_missing_swapped_or_doubled_are_refused(filled):
    lines = filled.read_bytes().splitlines(keepends=True)
    for order in ([0, 2, 3, 4], [0, 2, 1, 3, 4], [0, 1, 1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 1, 2, 3, 4]):
        filled.write_bytes(b"".join(lines[i] for i in order))
        with pytest.raises(LedgerError, match="damaged"):
            DiskLedger(filled)


def test_lines_that_no_delta_writes_are_refused(path, monkeypatch):
    from delta.privacy import ledger_file

    ok = {"event": {"kind": "gaussian", "mu": 1.0}, "of": [["ada", "0" * 64]]}
    for body in (
        {"debits": [{**ok, "event": {"kind": "telepathy"}}]},
        {"debits": [{**ok, "event": {"kind": "gaussian", "mu": "1"}}]},
        {"debits": [{**ok, "event": {"kind": "gaussian", "mu": -1.0}}]},
        {"debits": [{**ok, "event": {"kind": "gaussian", "mu": 1.0, "sigma": 1.0}}]},
        {"debits": [{**ok, "of": [[7, "0" * 64]]}]},
        {"debits": [{**ok, "of": [["ada", "photo.jpg"]]}]},
        {"debits": [{**ok, "of": [[]]}]},
        {"debits": [ok], "note": 1},
        {"debits": [ok], "budget": 2.0},
        {"debits": 3},
        {"budget": "much"},
        {"budget": None},
        {},
    ):
        first = ledger_file.header_line(UNLIMITED)
        line = ledger_file._line(first.chain, body)
        path.write_bytes(first.data + line.data)
        path.chmod(0o600)
        with pytest.raises(LedgerError, match="damaged in line 2: it is not one that this Delta writes"):
            DiskLedger(path)
    monkeypatch.setattr(ledger_file, "VERSION", 2)
    path.write_bytes(ledger_file.header_line(UNLIMITED).data)
    with pytest.raises(LedgerError, match="version 2, and this Delta reads version"):
        read_ledger(path)


# A disk that is full, or breaks


def test_a_full_disk_enters_nothing_and_leaves_the_ledger_usable(filled, monkeypatch):
    before, write = filled.read_bytes(), os.pwrite

    def half(handle, data, offset):
        write(handle, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def short(handle, data, offset):
        return write(handle, data[: len(data) // 2], offset)

    def interrupted(handle, data, offset):
        write(handle, data, offset)
        raise KeyboardInterrupt

    with DiskLedger(filled) as ledger:
        entries, spent = ledger.entries(), ledger.spent("ada")
        for fault in (half, short):
            monkeypatch.setattr(os, "pwrite", fault)
            with pytest.raises(LedgerError, match=r"No space left.*nothing was entered"):
                ledger.debit([debit(9)])
            assert filled.read_bytes() == before
        monkeypatch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledger.debit([debit(9)])
        assert filled.read_bytes() == before
        assert (ledger.entries(), ledger.spent("ada")) == (entries, spent)
        monkeypatch.setattr(os, "pwrite", write)
        assert ledger.debit([debit(9)]) == 1
    with DiskLedger(filled) as ledger:
        assert ledger.entries() == (*entries, debit(9))


def test_a_sync_that_fails_enters_nothing(filled, monkeypatch):
    before, sync, calls = filled.read_bytes(), os.fsync, []

    def once(handle):
        calls.append(handle)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(handle)

    with DiskLedger(filled) as ledger:
        monkeypatch.setattr(os, "fsync", once)
        with pytest.raises(LedgerError, match="nothing was entered"):
            ledger.debit([debit(9)])
        assert len(calls) == 2
        assert filled.read_bytes() == before
        assert ledger.debit([debit(9)]) == 1


def test_a_write_that_cannot_be_taken_back_ends_the_ledger(filled, monkeypatch):
    entries = read_ledger(filled).entries()

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with DiskLedger(filled) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", broken)
            patch.setattr(os, "ftruncate", broken)
            with pytest.raises(LedgerError, match="Input/output error"):
                ledger.debit([debit(9)])
        for attempt in (ledger.debit, ledger.replay):
            with pytest.raises(LedgerError, match="could not be taken back"):
                attempt([debit(10)])
        assert ledger.entries() == entries
    with DiskLedger(filled) as ledger:
        assert ledger.debit([debit(10)]) == 1


def test_a_file_that_may_not_grow(path):
    """The system itself stops the write, half of it done."""
    code = (
        SPEND
        + """
import resource
from delta.errors import LedgerError
number = 0
"""
        + DEBIT
        + """
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1]).stat().st_size + 40, limits[1]))
number = 1
try:
    ledger.debit([Debit("ada", f"{number:064x}", GaussianRelease(1.0))])
except LedgerError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
number = 2
"""
        + DEBIT
    )
    process = run_python(code, path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "cannot be written" in out
    assert "nothing was entered" in out
    with DiskLedger(path) as ledger:
        assert ledger.entries() == (debit(0), debit(2))


# Writers


def test_a_second_writer_is_refused_and_a_reader_is_not(filled):
    with DiskLedger(filled) as first:
        with pytest.raises(LedgerError, match=r"ledger\.jsonl is in use .* wait .* or name another"):
            DiskLedger(filled)
        assert first.debit([debit(9)]) == 1
        assert read_ledger(filled).entries()[-1] == debit(9)
        process = run_python(SPEND, filled)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "is in use by another process" in err
    with DiskLedger(filled) as second:
        assert second.debit([debit(10)]) == 1


def test_a_refused_ledger_is_not_held(filled):
    whole = filled.read_bytes()
    filled.write_bytes(whole.replace(b"ada", b"eve", 1))
    with pytest.raises(LedgerError):
        DiskLedger(filled)
    with open(filled, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_closed_ledger_enters_nothing(filled):
    ledger = DiskLedger(filled)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.debit([debit(9)])
    assert ledger.spent("ada").releases == 2


@pytest.mark.parametrize("what", ["removed", "replaced", "changed"])
def test_a_ledger_pulled_away_enters_nothing(filled, tmp_path, what):
    with DiskLedger(filled) as ledger:
        if what == "removed":
            filled.unlink()
        elif what == "replaced":
            export(ledger, tmp_path / "other.jsonl")
            os.replace(tmp_path / "other.jsonl", filled)
        else:
            with open(filled, "ab") as file:
                file.write(b"x")
        with pytest.raises(LedgerError, match="another program"):
            ledger.debit([debit(9)])
        assert debit(9) not in ledger.entries()


def test_a_forked_child_enters_nothing(path):
    code = (
        SPEND
        + """
import os
from delta.errors import LedgerError
child = os.fork()
number = 1
if child == 0:
    try:
"""
        + "        "
        + DEBIT
        + """
    except LedgerError as error:
        print(error, flush=True)
    ledger.close()
    os._exit(0)
os.waitpid(child, 0)
number = 2
"""
        + DEBIT
        + """
try:
    DiskLedger(Path(sys.argv[1]))
except LedgerError as error:
    print(error, flush=True)
"""
    )
    process = run_python(code, path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    first, second = out.splitlines()
    assert "belongs to the process that opened it" in first
    assert "is in use" in second  # the child's close has not let go of it
    assert read_ledger(path).entries() == (debit(2),)


def test_files_that_are_no_ledger_of_ours(path, tmp_path):
    with pytest.raises(LedgerError, match="cannot be opened"):
        DiskLedger(tmp_path)
    with pytest.raises(LedgerError, match="cannot be read"):
        read_ledger(path)
    with pytest.raises(LedgerError, match="no plain file"):
        DiskLedger(Path("/dev/null"))
    path.write_bytes(b"")
    path.chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        DiskLedger(path)
    with pytest.raises(LedgerError, match="is empty"):
        read_ledger(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be opened"):
        DiskLedger(tmp_path / "file" / "ledger.jsonl")
