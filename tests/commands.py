"""Running the `delta` command inside a test, and what one of its failures looks like."""

from __future__ import annotations

from typing import NamedTuple

from delta.errors import DeltaError, spec_of


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def fails(outcome: Outcome, error: type[DeltaError], *words: str) -> None:
    """One line on standard error that says what was wrong, the catalog's exit code, and no trace."""
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert outcome.code == spec_of(error).exit_code
    assert "Traceback" not in outcome.err + outcome.out
    for word in words:
        assert word in lines[0]
