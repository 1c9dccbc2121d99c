"""What a file of figures is of: by its `kind`, or by its keys where a version before wrote none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from delta.errors import InputError

__all__ = ["KINDS", "Kind", "kind_of", "refuse_if_empty"]

Kind = Literal["frontier", "attack", "membership", "audit", "train", "demo", "bench-latency", "bench-scale"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of the page's sections."""

_AXES = ("image", "rank", "clients", "records_per_s")
_SIGNS: tuple[tuple[Kind, frozenset[str]], ...] = (
    ("demo", frozenset({"accuracy", "training_records", "rows"})),
    ("train", frozenset({"accuracy", "mode", "release_hash"})),
)
_LISTS: dict[Kind, tuple[str, ...]] = {
    "frontier": ("points",),
    "attack": ("taps", "matching", "labels", "membership"),
    "membership": ("membership", "attacks"),
    "bench-latency": ("rows",),
    "bench-scale": ("rows",),
}


def kind_of(value: Mapping[str, Any], *, where: str) -> Kind:
    """The kind of a JSON object.

    Args:
        value: the object.
        where: its file, for the message.

    Raises:
        InputError: a kind that the report does not know, or none and no keys that tell one.
    """
    known = ", ".join(KINDS)
    if "kind" in value:
        for kind in KINDS:
            if value["kind"] == kind:
                return kind
        # What is there may be anything: only a short word of it is repeated.
        given = value["kind"]
        named = repr(given) if isinstance(given, str) and len(given) <= 40 else f"a {type(given).__name__}"
        raise InputError(f"{where} is of kind {named}, which the report does not know; it reads {known}")
    for sign, keys in _SIGNS:
        if keys <= value.keys():
            return sign
    rows = value.get("rows")
    if isinstance(rows, list) and rows and isinstance(rows[0], Mapping) and "ms_median" in rows[0]:
        return "bench-scale" if any(axis in rows[0] for axis in _AXES) else "bench-latency"
    raise InputError(f"{where} has no kind, and its keys tell none; the report reads {known}")


def refuse_if_empty(kind: Kind, value: Mapping[str, Any], *, where: str) -> None:
    """Refuse figures that hold nothing to show.

    Raises:
        InputError: every list that the kind is made of is absent or empty.
    """
    names = _LISTS.get(kind)
    if names and not any(isinstance(value.get(name), list | dict) and value[name] for name in names):
        listed = " or ".join(names)
        raise InputError(f"{where} holds no {listed}: a {kind} run that measured nothing; run it to its end")
