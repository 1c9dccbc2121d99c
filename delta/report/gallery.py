"""The gallery: what the record was, what the cloud saw of it, and what an attacker drew."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from delta.report.figures import Figures
from delta.report.markup import Html, element, joined
from delta.report.numbers import decimal

__all__ = ["NOT_SHOWN", "gallery", "holds_pictures"]

_SHOTS = (
    ("original", "original", "stays"),
    ("principal", "principal part", "stays"),
    ("residual", "residual", "stays, but for its bits"),
    ("seen", "what the cloud saw", "left"),
    ("drawn", "best reconstruction", "an attacker's drawing"),
)
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}

NOT_SHOWN = "This run holds pictures of records. They are not shown; --include-records puts them here."


def holds_pictures(examples: Sequence[Figures]) -> bool:
    """Whether any example has a picture."""
    return any(_source(one, key) for one in examples for key, _, _ in _SHOTS)


def gallery(examples: Sequence[Figures], *, what: str) -> Html:
    """A card a record.

    Args:
        examples: `original`, `seen`, `drawn` and whatever else there is of `principal` and `residual`, each a PNG or
            JPEG in base64; `matched`, `ssim` and `label` where they are known.
        what: what the pictures are of, for who cannot see them.
    """
    cards = []
    for number, one in enumerate(examples, start=1):
        shots = [
            element(
                "figure",
                element("img", src=source, alt=f"{name} of {what} {number}"),
                element("figcaption", name, Html("<br>"), note),
            )
            for key, name, note in _SHOTS
            if (source := _source(one, key))
        ]
        cards.append(element("li", element("div", *shots, class_="shots"), *_marks(one)))
    return element("ul", joined(cards), class_="gallery")


def _marks(one: Figures) -> list[Html]:
    """Whether the record was matched, and how close the drawing came."""
    marks = []
    matched, ssim, label = one.flag("matched"), one.number("ssim"), one.text("label")
    if matched is not None:
        text = "matched" if matched else "not matched"
        marks.append(element("span", text, class_=f"mark {'hit' if matched else 'miss'}"))
    notes = [*([f"SSIM {decimal(ssim)}"] if ssim is not None else []), *([f"class {label}"] if label else [])]
    if notes:
        marks.append(element("span", ", ".join(notes), class_="mute"))
    return marks


def _source(one: Figures, key: str) -> str | None:
    """A data address, where the text is a picture in base64 and nothing else."""
    text = one.text(key)
    if text is None:
        return None
    try:
        data = base64.b64decode(text.removeprefix("data:image/png;base64,"), validate=True)
    except (binascii.Error, ValueError):
        return None
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature):
            return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return None
