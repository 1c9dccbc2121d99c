"""HTML that is escaped by construction: a plain string is text, and only `Html` is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["Html", "Node", "element", "joined", "paragraphs", "table"]


class Html(str):
    """Markup that was made here. Every other string is escaped when it is put into a page."""

    __slots__ = ()


Node = str | None
"""A child of an element: text, `Html`, or nothing."""

_VOID = {"img", "meta"}


def element(tag: str, *children: Node, **attributes: str | int | bool | None) -> Html:
    """An element.

    Args:
        tag: its name.
        children: text is escaped, `Html` is taken as it is, none is left out.
        attributes: by name; a trailing underscore is dropped (`class_`), other underscores become hyphens; none and
            false are left out, true stands without a value.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    head = f"<{' '.join(parts)}>"
    return Html(head if tag in _VOID else f"{head}{joined(children)}</{tag}>")


def joined(children: Iterable[Node]) -> Html:
    """Children one after the other; text is escaped."""
    return Html(
        "".join(child if isinstance(child, Html) else html.escape(child) for child in children if child)
    )


def paragraphs(lines: Iterable[str], *, class_: str | None = None) -> Html:
    """One paragraph a line."""
    return joined(element("p", line, class_=class_) for line in lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[Node]], *, caption: str) -> Html:
    """A table in a box of its own that scrolls where the page is narrow; the first cell of a row is its heading."""
    head = joined(element("th", column, scope="col") for column in columns)
    body = joined(
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
        for row in rows
    )
    grid = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", head)) if any(columns) else None,
        element("tbody", body),
    )
    # The box can be reached and scrolled from the keyboard.
    return element("div", grid, class_="scroll", role="region", tabindex=0, aria_label=caption)
