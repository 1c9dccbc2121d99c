"""Whether pictures of records may stand on a page (I6): those of the embedded data, or those that were asked for."""

from __future__ import annotations

from delta.report.figures import Figures

__all__ = ["may_show"]

_EMBEDDED = "embedded"


def may_show(figures: Figures, *, include_records: bool) -> bool:
    """Whether a run's pictures may be shown.

    Args:
        figures: `source` is what the command was given as --data; without it the records count as the user's own.
            The name of a data set says nothing: a user's folder may be called anything.
        include_records: whether the user has asked for records.
    """
    return include_records or figures.text("source") == _EMBEDDED
