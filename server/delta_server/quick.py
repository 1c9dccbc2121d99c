"""Which kinds of call cost less than handing them to another thread and back."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QuickCalls"]

_QUICK_MS = 0.1  # about what two hand-overs between threads cost
_SLOW_MS = 2.0  # a call that blocked the event loop for so long was the last one there
_WEIGHT = 0.1  # of the newest call in the running mean
_KINDS = 256  # kinds of call to remember


@dataclass(slots=True)
class _Kind:
    mean_ms: float
    records: int


class QuickCalls:
    """Remembers a running mean of each kind's time, and how many records its largest call held."""

    def __init__(self) -> None:
        self._kinds: dict[object, _Kind] = {}

    def fits(self, key: object | None, records: int) -> bool:
        """Whether a call of so many records may run on the event loop; one never seen may not."""
        kind = self._kinds.get(key)
        return kind is not None and kind.mean_ms <= _QUICK_MS and records <= 2 * kind.records

    def learn(self, key: object | None, records: int, ms: float) -> None:
        """Take note of a call that took `ms` milliseconds; calls without a key are never quick."""
        if key is None:
            return
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _KINDS:
                self._kinds.clear()
            self._kinds[key] = _Kind(ms, records)
            return
        # One pre-empted call says little, one that is truly slow says all.
        kind.mean_ms = ms if ms > _SLOW_MS else kind.mean_ms + _WEIGHT * (ms - kind.mean_ms)
        kind.records = max(kind.records, records)
