"""What a user can choose: a point with the cloud, or a model without one. Read from the JSON of a frontier."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from delta.errors import InputError

__all__ = ["AXES", "Axis", "Option", "options_of", "read_frontier"]


@dataclass(frozen=True)
class Option:
    """One choice; a figure that was not measured is none.

    Attributes:
        method: `delta`, `main-only` or `private-only`.
        name: in words.
        accuracy: percent.
        private_ms: median of a batch.
        ssim: inversion SSIM under the strongest attack.
        matching_top1: percent.
        label_leak: percent.
        bytes_per_record: serialised requests, the handshake included.
        epsilon: of a release; infinite without noise, 0 where nothing is released.
        private_macs: a record.
        source: the entry of the frontier.
    """

    method: Literal["delta", "main-only", "private-only"]
    name: str
    accuracy: float | None
    private_ms: float | None
    ssim: float | None
    matching_top1: float | None
    label_leak: float | None
    bytes_per_record: float | None
    epsilon: float | None
    private_macs: float | None
    source: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """One way in which an option is better than another.

    Attributes:
        field: of `Option`.
        label: in words, with its unit.
        unit: behind a number.
        higher: whether more is better.
    """

    field: str
    label: str
    unit: str
    higher: bool = False

    def cost(self, option: Option) -> float:
        """Less is better; what was not measured is worst."""
        value = getattr(option, self.field)
        if value is None or math.isnan(value):
            return math.inf
        return -value if self.higher else float(value)


AXES = (
    Axis("accuracy", "accuracy", " %", higher=True),
    Axis("ssim", "inversion SSIM", ""),
    Axis("matching_top1", "matching top-1", " %"),
    Axis("label_leak", "label leak", " %"),
    Axis("private_ms", "private time of a batch", " ms"),
    Axis("bytes_per_record", "bytes a record", " B"),
)
"""What the Pareto set is about: the first is to be high, the others low."""


def options_of(frontier: Mapping[str, Any]) -> list[Option]:
    """Points, then models without a cloud: of these nothing leaves, so that they leak nothing and send no bytes.

    Raises:
        InputError: an entry is not as `delta frontier` writes it.
    """
    try:
        return [
            *(_point(point) for point in frontier["points"]),
            *(_baseline(one) for one in frontier["baselines"]),
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"the frontier lacks what `delta frontier` writes ({type(error).__name__}: {error}); run it again"
        ) from None


def read_frontier(path: Path) -> dict[str, Any]:
    """The JSON that `delta frontier --json` wrote.

    Raises:
        InputError: there is no such file, or it is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"frontier {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"frontier {path} is not JSON; give the file that delta frontier wrote") from None
    kind = found.get("kind") if isinstance(found, dict) else None
    if kind != "frontier":
        told = f"is of kind {kind!r}" if isinstance(kind, str) else "is no frontier"
        raise InputError(f"{path} {told}; give the file that delta frontier wrote")
    whole: dict[str, Any] = found
    return whole


def _point(point: Mapping[str, Any]) -> Option:
    number = _numbers(point)
    epsilon = number("epsilon")
    return Option(
        method="delta",
        name=f"point {point['point']}",
        accuracy=_number(point["accuracy"]["delta"]),
        private_ms=number("private_ms"),
        ssim=number("ssim"),
        matching_top1=number("matching_top1"),
        label_leak=number("label_leak"),
        bytes_per_record=number("bytes_per_record"),
        epsilon=math.inf if epsilon is None else epsilon,
        private_macs=number("private_macs"),
        source=point,
    )


def _baseline(one: Mapping[str, Any]) -> Option:
    number = _numbers(one)
    method = one["method"]
    if method not in ("main-only", "private-only"):
        raise ValueError(f"baseline {method!r}")
    macs = number("private_macs")
    return Option(
        method=method,
        name=method if macs is None else f"{method} of {macs / 1e6:.2f} M MACs",
        accuracy=number("accuracy"),
        private_ms=number("private_ms"),
        ssim=0.0,
        matching_top1=0.0,
        label_leak=0.0,
        bytes_per_record=0.0,
        epsilon=0.0,
        private_macs=macs,
        source=one,
    )


def _numbers(entry: Mapping[str, Any]) -> Callable[[str], float | None]:
    return lambda key: _number(entry.get(key))


def _number(value: Any) -> float | None:  # noqa: ANN401
    return None if value is None else float(value)
