"""Numbers as people read them. What was not measured, or is not finite, is a dash."""

from __future__ import annotations

__all__ = [
    "DASH",
    "count",
    "decimal",
    "epsilon_text",
    "interval",
    "millions",
    "ms",
    "pair",
    "percent",
    "signed",
    "size",
    "spread",
]

DASH = "–"


def percent(value: float | None, *, digits: int = 1) -> str:
    """`value` is in percent already."""
    return DASH if value is None else f"{value:.{digits}f} %"


def signed(value: float) -> str:
    """A difference of percentages with its sign; what rounds to nothing has none that misleads."""
    return f"{round(value, 1) + 0.0:+.1f}"


def epsilon_text(value: float) -> str:
    """ε, without powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def decimal(value: float | None, *, digits: int = 2) -> str:
    """A fixed number of digits behind the point."""
    return DASH if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A whole number with commas."""
    return DASH if value is None else f"{value:,.0f}"


def millions(value: float | None) -> str:
    """MACs or parameters in millions."""
    if value is None:
        return DASH
    return "0" if value == 0 else f"{value / 1e6:,.2f} M" if value < 1e7 else f"{value / 1e6:,.1f} M"


def ms(value: float | None) -> str:
    """Milliseconds, with about three figures."""
    if value is None:
        return DASH
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def size(value: float | None) -> str:
    """Bytes with a unit."""
    if value is None:
        return DASH
    for unit, scale in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            return f"{value / scale:,.1f} {unit}"
    return f"{value:,.0f} bytes" if value >= 10 else f"{value:.1f} bytes"


def pair(first: str, second: str) -> str:
    """Two figures of one cell."""
    return DASH if first == second == DASH else f"{first} / {second}"


def interval(value: str, low: float | None, high: float | None, *, digits: int = 1) -> str:
    """A figure with its interval behind it, where there is one."""
    return value if low is None or high is None else f"{value} ({low:.{digits}f} to {high:.{digits}f})"


def spread(values: list[float], *, digits: int = 1, unit: str = " %") -> str:
    """One figure, or the range of several."""
    if not values:
        return DASH
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"
