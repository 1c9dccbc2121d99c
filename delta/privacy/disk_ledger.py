"""The ledger on disk: what is entered there survives a crash, before anything is sent."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from delta.errors import LedgerError
from delta.files import sync_folder, write_whole
from delta.privacy.ledger import UNLIMITED, Budget, Debit, InMemoryLedger, Ledger, Spent, checked_budget
from delta.privacy.ledger_file import Line, budget_line, debits_line, header_line, parse_ledger, read_ledger

__all__ = ["DiskLedger", "export", "replay"]

_LOG = logging.getLogger("delta.ledger")
_EXPORT_LINE = 1024
"""Entries a line of an export."""


class DiskLedger:
    """A ledger in a file of mode 0600, held by one writer; a context manager.

    Each batch of new entries is appended and synced before `debit` returns: a crash between debit and send
    over-counts, and none under-counts. A last line that a crash cut short was never acknowledged; it is
    dropped with a warning. Any other damage is refused. What no file can tell is that the whole of it was
    deleted, or an older copy put in its place.

    Args:
        path: of the file; a new one and its folders are made.
        budget: the largest joint μ of any one subject, or `unlimited`; kept in the file, it holds until another
            is given. None takes the one in the file, `unlimited` in a new one.
        warn: told in one line what a crash has left behind.

    Raises:
        LedgerError: another process holds the ledger, it is damaged, open to others, no ledger at all, or
            cannot be written.
        PrivacyParameterError: the budget is not a number above 0.
    """

    def __init__(
        self, path: Path, *, budget: Budget | None = None, warn: Callable[[str], None] = _LOG.warning
    ) -> None:
        wanted = None if budget is None else checked_budget(budget)
        self._path = path.absolute()
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._unusable = ""
        self._file = _open(self._path)
        try:
            self._memory = self._load(wanted, warn)
        except OSError as error:
            self._file.close()
            raise LedgerError(f"ledger {path} cannot be used: {error.strerror}") from None
        except BaseException:
            self._file.close()
            raise

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._path

    @property
    def budget(self) -> Budget:
        """The budget of each subject."""
        return self._memory.budget

    def debit(self, debits: Sequence[Debit]) -> int:
        """Enter releases that are about to be sent; see `Ledger.debit`. They are on disk when it returns.

        Raises:
            BudgetExceededError: a subject's joint μ would pass the budget; nothing was entered.
            LedgerError: they cannot be written, so nothing was entered; or the ledger is closed or changed.
            PrivacyParameterError: a release id is entered already with another event; nothing was entered.
        """
        with self._lock:
            self._check_usable()
            return self._memory.debit(debits)

    def replay(self, entries: Iterable[Debit]) -> int:
        """Enter what has been sent already, on disk: never refused for the budget.

        Returns:
            How many were new.

        Raises:
            LedgerError: as for `debit`.
            PrivacyParameterError: the entries contradict each other or the ledger; nothing was entered.
        """
        with self._lock:
            self._check_usable()
            return self._memory.replay(entries)

    def spent(self, subject: str) -> Spent:
        """What a subject has spent; zeros for an unknown one."""
        return self._memory.spent(subject)

    def entries(self) -> tuple[Debit, ...]:
        """All entries in the order of their first debit."""
        return self._memory.entries()

    def close(self) -> None:
        """Let another writer have the ledger; idempotent. Nothing more can be entered through this object."""
        with self._lock:
            if self._file.closed:
                return
            self._unusable = self._unusable or "it was closed; open it again"
            if os.getpid() == self._owner:  # a forked child holds the same lock, and would take it from us
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, wanted: Budget | None, warn: Callable[[str], None]) -> InMemoryLedger:
        """Read the file, repair its end, and write down a budget that is new."""
        contents = parse_ledger(self._file.read(), path=self._path)
        self._size, self._chain = contents.size, contents.chain
        if contents.torn:
            os.ftruncate(self._file.fileno(), self._size)
            os.fsync(self._file.fileno())
            if self._size:
                warn(
                    f"ledger {self._path}: dropped {contents.torn} bytes of an entry that a crash cut short; "
                    "nothing was sent under it"
                )
        if not contents.ended:
            self._append(Line(b"\n", self._chain))
        if self._size == 0:
            self._append(header_line(UNLIMITED if wanted is None else wanted))
            budget = wanted
        else:
            budget = contents.budget if wanted is None else wanted
            if budget != contents.budget:
                self._append(budget_line(self._chain, budget))
        sync_folder(self._path.parent)
        return InMemoryLedger(
            budget=UNLIMITED if budget is None else budget, entries=contents.entries, keep=self._keep
        )

    def _keep(self, debits: Sequence[Debit]) -> None:
        self._append(debits_line(self._chain, debits))

    def _append(self, line: Line) -> None:
        """Write a line and sync it, or leave the file as it was."""
        handle = self._file.fileno()
        whole = False
        try:
            if os.pwrite(handle, line.data, self._size) != len(line.data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
            self._size, self._chain = self._size + len(line.data), line.chain
            whole = True
        except OSError as error:
            raise LedgerError(
                f"ledger {self._path} cannot be written: {error.strerror}; nothing was entered and nothing "
                "may be sent, so make room or name another ledger"
            ) from None
        finally:
            if not whole:
                self._take_back()

    def _take_back(self) -> None:
        try:
            os.ftruncate(self._file.fileno(), self._size)
            os.fsync(self._file.fileno())
        except OSError:
            self._unusable = "a failed write could not be taken back; open it again once its disk works"

    def _check_usable(self) -> None:
        """Refuse to enter anything that the named file would not hold afterwards."""
        reason = self._unusable
        if not reason and os.getpid() != self._owner:
            reason = "it belongs to the process that opened it; open it in one process only"
        if not reason and not self._is_ours():
            reason = "it was removed, replaced or changed by another program; restore it and open it again"
        if reason:
            raise LedgerError(f"ledger {self._path} cannot be used: {reason}; nothing was entered")

    def _is_ours(self) -> bool:
        try:
            named = os.stat(self._path)
        except OSError:
            return False
        return os.path.samestat(named, os.fstat(self._file.fileno())) and named.st_size == self._size


def export(ledger: Ledger, path: Path) -> int:
    """Write a ledger anew as one file that `DiskLedger` and `replay` take, with its latest budget.

    Returns:
        How many entries it holds.

    Raises:
        LedgerError: the file exists: a ledger in use must never be replaced.
        InputError: it cannot be written; nothing is left behind.
    """
    if path.exists():
        raise LedgerError(f"{path} exists, and an export replaces nothing; name a new file")
    entries = ledger.entries()
    lines = [header_line(ledger.budget)]
    for start in range(0, len(entries), _EXPORT_LINE):
        lines.append(debits_line(lines[-1].chain, entries[start : start + _EXPORT_LINE]))
    write_whole(path, b"".join(line.data for line in lines))
    return len(entries)


def replay(sources: Sequence[Path], into: DiskLedger) -> int:
    """Enter what other ledgers hold: all of it or nothing, and never refused for the budget.

    Returns:
        How many entries were new; equal ones cost nothing.

    Raises:
        LedgerError: a source cannot be read or is damaged, or `into` cannot be written.
        PrivacyParameterError: one release id is entered as two events.
    """
    return into.replay([debit for path in sources for debit in read_ledger(path).entries()])


def _open(path: Path) -> BinaryIO:
    """The file, locked for this process.

    Raises:
        LedgerError: another process has it, others may read it, it is no plain file, or cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        file = os.fdopen(handle, "r+b", buffering=0)
    except OSError as error:
        raise LedgerError(
            f"ledger {path} cannot be opened: {error.strerror}; name a file in a folder of yours"
        ) from None
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise LedgerError(f"ledger {path} is no plain file; name one")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise LedgerError(
                f"ledger {path} is open to others (mode {status.st_mode & 0o777:03o}), and it names subjects; "
                "run chmod 600 on it"
            )
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            raise LedgerError(f"ledger {path} was replaced while it was opened; try again")
    except BlockingIOError:
        file.close()
        raise LedgerError(
            f"ledger {path} is in use by another process, and one at a time may write it; wait until that "
            "has ended, or name another ledger"
        ) from None
    except OSError as error:
        file.close()
        raise LedgerError(f"ledger {path} cannot be locked: {error.strerror}") from None
    except LedgerError:
        file.close()
        raise
    return file
