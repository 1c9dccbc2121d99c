"""The file of a ledger: JSON lines that are only ever appended, chained so that damage shows.

    {"ledger":"delta","version":1,"budget":"unlimited","chain":"…"}
    {"debits":[{"event":{"kind":"gaussian","mu":1.67},"of":[["ada","3f…","9c…"]]}],"chain":"…"}
    {"budget":2.5,"chain":"…"}

A line of debits is one batch: runs of equal events, in each of them runs of one subject and its release ids.
The latest budget holds. A line's `chain` is the SHA-256 in hex of the chain before it and of the line without
its own; it finds damage, and is no signature. A last line without an end is a write that a crash cut short.
Subjects stand there as the owner names them, so the file is for the owner alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from delta.errors import DeltaError, LedgerError
from delta.privacy.events import GaussianRelease, NonPrivateRelease, RandomizedResponseLabel
from delta.privacy.ledger import UNLIMITED, Budget, Debit, InMemoryLedger, checked_budget

__all__ = ["Contents", "Line", "budget_line", "debits_line", "header_line", "parse_ledger", "read_ledger"]

VERSION = 1
_START = b'{"ledger":"delta"'
_HEADER = _START + b',"version":%d,' % VERSION
_CHAIN, _END = b',"chain":"', b'"}'
_TAIL = len(_CHAIN) + 64 + len(_END)


@dataclass(frozen=True)
class Line:
    """One line as it is written, its end included, and the chain that the next one continues."""

    data: bytes
    chain: str


@dataclass(frozen=True)
class Contents:
    """What a ledger's file says.

    Attributes:
        budget: the latest.
        entries: in the order of their first debit.
        chain: of the last whole line.
        size: bytes of the whole lines; 0 where not even the header was written.
        torn: bytes behind them, which were never acknowledged.
        ended: whether the last whole line has its end; a crash may have come just before it.
    """

    budget: Budget
    entries: tuple[Debit, ...]
    chain: str
    size: int
    torn: int
    ended: bool


def header_line(budget: Budget) -> Line:
    """The first line."""
    return _line("", {"ledger": "delta", "version": VERSION, "budget": budget})


def budget_line(chain: str, budget: Budget) -> Line:
    """A budget that holds from here on."""
    return _line(chain, {"budget": budget})


def debits_line(chain: str, debits: Sequence[Debit]) -> Line:
    """One batch."""
    runs = [
        {
            "event": _event_to_json(event),
            "of": [
                [subject, *(debit.release_id for debit in run)]
                for subject, run in groupby(same, key=lambda debit: debit.subject)
            ],
        }
        for event, same in groupby(debits, key=lambda debit: debit.event)
    ]
    return _line(chain, {"debits": runs})


def read_ledger(path: Path) -> InMemoryLedger:
    """A copy of what a ledger's file holds now; a process that writes it is not disturbed.

    Raises:
        LedgerError: it cannot be read, is no ledger, or is damaged.
        PrivacyParameterError: one release id is entered as two events.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"ledger {path} cannot be read: {error.strerror}") from None
    contents = parse_ledger(data, path=path)
    if contents.size == 0:
        raise LedgerError(f"ledger {path} is empty; name the file of a ledger that has been used")
    return InMemoryLedger(budget=contents.budget, entries=contents.entries)


def parse_ledger(data: bytes, *, path: Path) -> Contents:
    """Read a file's bytes; `path` names it in errors.

    Raises:
        LedgerError: it is no ledger, of another version, or damaged anywhere but in an unfinished last line.
    """
    *lines, tail = data.split(b"\n")
    _check_start(lines[0] if lines else tail, whole=bool(lines), path=path)
    budget: Budget = UNLIMITED
    entries: list[Debit] = []
    chain, size = "", 0
    if unended := bool(tail) and _whole_but_for_its_end(lines, tail, path=path):
        lines.append(tail)
    for number, line in enumerate(lines, start=1):
        body, chain = _unchain(line, chain, number=number, path=path)
        try:
            found = _read_body(body, first=number == 1)
        except (DeltaError, ValueError, TypeError, KeyError, RecursionError):
            raise _damaged(path, number, "it is not one that this Delta writes") from None
        if isinstance(found, list):
            entries += found
        else:
            budget = found
        size += len(line) + 1
    size -= unended
    return Contents(budget, tuple(entries), chain, size, len(data) - size, not unended)


def _line(chain: str, body: dict[str, Any]) -> Line:
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    after = _chained(chain, text)
    return Line(text[:-1] + _CHAIN + after.encode() + _END + b"\n", after)


def _chained(chain: str, body: bytes) -> str:
    return hashlib.sha256(chain.encode() + body).hexdigest()


def _chain_fits(line: bytes, chain: str) -> tuple[bytes, str] | None:
    """A line's body and its chain; none where it does not continue `chain`."""
    body = line[:-_TAIL] + b"}"
    after = _chained(chain, body)
    return (body, after) if line[-_TAIL:] == _CHAIN + after.encode() + _END else None


def _unchain(line: bytes, chain: str, *, number: int, path: Path) -> tuple[bytes, str]:
    found = _chain_fits(line, chain)
    if found is None:
        raise _damaged(path, number, "its checksum does not fit")
    return found


def _whole_but_for_its_end(lines: Sequence[bytes], tail: bytes, *, path: Path) -> bool:
    """Whether a last line without an end lacks nothing else: what may have been acknowledged always counts.

    Raises:
        LedgerError: another byte stands in its end's place.
    """
    chain = lines[-1][-_TAIL + len(_CHAIN) : -len(_END)].decode("latin-1") if lines else ""
    if _chain_fits(tail[:-1], chain) is not None:
        raise _damaged(path, len(lines) + 1, "its end is another byte")
    return _chain_fits(tail, chain) is not None


def _check_start(line: bytes, *, whole: bool, path: Path) -> None:
    """Refuse a file that is not ours before anything in it is judged, or cut off."""
    if line.startswith(_HEADER) or (not whole and _HEADER.startswith(line)):
        return
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if line.startswith(_START) and isinstance(value, dict) and isinstance(value.get("version"), int):
        raise LedgerError(
            f"ledger {path} has version {value['version']}, and this Delta reads version {VERSION}; "
            "use the Delta that wrote it"
        )
    raise LedgerError(f"{path} is no ledger of Delta, or its first line is damaged; name another file")


def _read_body(body: bytes, *, first: bool) -> Budget | list[Debit]:
    value = json.loads(body)
    keys = {"ledger", "version", "budget"} if first else set(value) & {"debits", "budget"}
    if set(value) != keys or len(keys) != (3 if first else 1):
        raise ValueError
    return list(_read_debits(value["debits"])) if "debits" in keys else checked_budget(value["budget"])


def _read_debits(runs: list[dict[str, Any]]) -> Iterator[Debit]:
    for run in runs:
        if set(run) != {"event", "of"}:
            raise ValueError
        event = _event_from_json(run["event"])
        for subject, *releases in run["of"]:
            if not isinstance(subject, str):
                raise TypeError
            for release in releases:
                yield Debit(subject, release, event)


def _event_to_json(event: GaussianRelease | NonPrivateRelease | RandomizedResponseLabel) -> dict[str, Any]:
    if type(event) is GaussianRelease:
        return {"kind": "gaussian", "mu": float(event.mu)}
    if type(event) is RandomizedResponseLabel:
        return {"kind": "randomized-response", "epsilon": float(event.epsilon)}
    if type(event) is NonPrivateRelease:
        return {"kind": "no-noise"}
    raise LedgerError(f"a ledger has no form for events of kind {type(event).__name__}; nothing was entered")


def _event_from_json(
    value: dict[str, Any],
) -> GaussianRelease | NonPrivateRelease | RandomizedResponseLabel:
    kind, facts = value["kind"], {name: fact for name, fact in value.items() if name != "kind"}
    if kind == "gaussian":
        return GaussianRelease(**facts)
    if kind == "randomized-response":
        return RandomizedResponseLabel(**facts)
    if kind == "no-noise":
        return NonPrivateRelease(**facts)
    raise ValueError


def _damaged(path: Path, number: int, what: str) -> LedgerError:
    return LedgerError(
        f"ledger {path} is damaged in line {number}: {what}; restore it from a copy or an export, since "
        "nothing may be sent while it is unknown what was spent"
    )
