"""`delta bench latency` and `delta bench scale`: what each method costs, side by side, in one run."""

from __future__ import annotations

from collections.abc import Sequence

from delta.report.charts import Canvas, Chart, Dot, Series, dots, scatter
from delta.report.figures import Figures
from delta.report.markup import Html, element, table
from delta.report.numbers import DASH, count, decimal, interval, millions, ms, pair, size
from delta.report.read import Run
from delta.report.section import Section, tiles
from delta.report.verdict import grown, timed

__all__ = ["bench_sections"]

_TERMS = frozenset({"private MACs", "median", "log axis"})
_AXES = ("image", "rank", "clients", "batch")
_INFER = "infer"
_ROUND_TRIP = "round trip"


def bench_sections(runs: Sequence[Run], canvas: Canvas, include_records: bool) -> list[Section]:
    """A section for each network and setting of each run."""
    del include_records  # benchmarks hold no records
    sections = []
    for run in runs:
        rows = run.figures.parts("rows")
        if run.kind == "bench-scale":
            sections.append(_scale(run, rows, canvas))
            continue
        for setting in dict.fromkeys(_setting(row) for row in rows):
            some = [row for row in rows if _setting(row) == setting]
            sections.append(_latency(run, some, setting, canvas))
    return sections


def _latency(run: Run, rows: list[Figures], setting: str, canvas: Canvas) -> Section:
    infer = [row for row in rows if row.text("phase") == _INFER]
    mine = _of(infer, "delta")
    whole = _of(infer, "private-only")
    small = _nearest(infer, mine)
    batch = _number(mine or (rows[0] if rows else None), "batch")
    verdict = (
        timed(
            delta=_number(mine, "ms_median"),
            whole=_number(whole, "ms_median"),
            small=_number(small, "ms_median"),
            records=batch,
        ),
    )
    charts = [canvas.add(chart) for chart in (_times(rows), _bytes(rows)) if chart is not None]
    blocks: list[Html] = [
        tiles([
            ("Delta, a call", ms(_number(mine, "ms_median")), f"{count(batch)} records, median"),
            ("of that, the private side", ms(_number(mine, "private_ms")), ""),
            ("whole model, all private", ms(_number(whole, "ms_median")), "no cloud"),
            ("sent per record", size(_per_record(mine, "bytes_up")), "by Delta"),
        ]),
        *charts,
        _table(rows),
        *_modelled(run, setting, infer),
    ]  # fmt: skip
    return Section(f"Cost: {setting}", verdict, tuple(blocks), (), _gives(mine), _TERMS)


def _scale(run: Run, rows: list[Figures], canvas: Canvas) -> Section:
    blocks: list[Html] = []
    for axis in _AXES:
        some = [row for row in rows if row.number(axis) is not None and _axis_of(row) == axis]
        if some:
            blocks.append(canvas.add(_over(axis, some)))
            blocks.append(_scale_table(axis, some))
    mine = [row for row in rows if row.text("method") == "delta"]
    sent = _gives(mine[0] if mine else None)
    return Section("How costs grow", (grown(),), tuple(blocks), (), sent, _TERMS)


def _axis_of(row: Figures) -> str:
    return next((axis for axis in _AXES if row.number(axis) is not None), "batch")


def _times(rows: list[Figures]) -> Chart | None:
    views = []
    infer = [row for row in rows if row.text("phase") == _INFER]
    train = [row for row in rows if row.text("phase") not in (_INFER, _ROUND_TRIP)]
    for label, some in (("inference", infer), ("training steps", train)):
        found = [dot for row in some if (dot := _time(row)) is not None]
        if found:
            views.append(dots(_by_method(found), label=label, x=_log("milliseconds a call (log)")))
    if not views:
        return None
    caption = (
        "Milliseconds a call, on a log axis: each line to the right is so many times slower. A dot is the median of "
        "the rounds, its bar reaches from the fastest to the slowest. Client and cloud ran on the machine named under "
        "Runs, seeds and versions."
    )
    return Chart("Time a call", caption, tuple(views))


def _bytes(rows: list[Figures]) -> Chart | None:
    series = []
    for name, key, colour in (
        ("up, to the cloud", "bytes_up", 1),
        ("down, to the private side", "bytes_down", 0),
    ):
        found = []
        for row in rows:
            value = _per_record(row, key)
            if row.text("phase") == _INFER and value:
                found.append(Dot(value, _label(row), (_label(row), f"{size(value)} {name}, a record")))
        series.append(Series(name, tuple(found), colour))
    if not any(one.dots for one in series):
        return None
    caption = (
        "Serialised messages of inference, per record, on a log axis. A method without a row sends nothing. Fewer "
        "bytes do not mean that less is given away: one label is a byte."
    )
    return Chart(
        "Bytes a record", caption, (dots(series, x={**_log("bytes a record (log)"), "tickformat": "~s"}),)
    )


def _over(axis: str, rows: list[Figures]) -> Chart:
    series = []
    for position, name in enumerate(dict.fromkeys(_label(row) for row in rows)):
        found = []
        for row in rows:
            at, median = row.number(axis), row.number("ms_median")
            if _label(row) == name and at is not None and median is not None:
                hover = (
                    name,
                    f"{axis} {at:g}",
                    f"{ms(median)}",
                    f"{count(row.number('records_per_s'))} records/s",
                )
                found.append(Dot(at, median, hover, row.number("ms_min"), row.number("ms_max")))
        series.append(Series(name, tuple(found), position, "solid"))
    view = scatter(series, x={"title": axis, "type": "log"}, y=_log("milliseconds a call (log)"))
    return Chart(
        f"Time over {axis}", "Medians, with the range of the rounds; both axes are logarithmic.", (view,)
    )


def _table(rows: list[Figures]) -> Html:
    columns = [
        "method", "phase", "time (range)", "private / cloud", "bytes up / down a record", "round trips",
        "private / cloud MACs", "peak private MiB",
    ]  # fmt: skip
    order = sorted(rows, key=lambda row: (row.text("phase") != _INFER, row.text("phase") == _ROUND_TRIP))
    lines = [
        [
            _label(row),
            row.text("phase") or DASH,
            interval(ms(row.number("ms_median")), row.number("ms_min"), row.number("ms_max"), digits=2),
            pair(ms(row.number("private_ms")), ms(row.number("cloud_ms"))),
            pair(count(_per_record(row, "bytes_up")), count(_per_record(row, "bytes_down"))),
            count(row.number("round_trips")),
            pair(millions(row.number("private_macs")), millions(row.number("cloud_macs"))),
            decimal(row.number("peak_private_mib")),
        ]
        for row in order
    ]
    return table(columns, lines, caption="Every row of the run")


def _scale_table(axis: str, rows: list[Figures]) -> Html:
    lines = [
        [
            f"{row.number(axis) or 0:g}",
            _label(row),
            interval(ms(row.number("ms_median")), row.number("ms_min"), row.number("ms_max"), digits=2),
            count(row.number("records_per_s")),
            pair(count(_per_record(row, "bytes_up")), count(_per_record(row, "bytes_down"))),
        ]
        for row in rows
    ]
    columns = [axis, "method", "time (range)", "records/s of all clients", "bytes up / down a record"]
    return table(columns, lines, caption=f"Over {axis}")


def _modelled(run: Run, setting: str, infer: Sequence[Figures]) -> list[Html]:
    rows = [row for row in run.figures.parts("modelled") if _setting(row) == setting]
    if not rows:
        return []
    # They stand in the order of the measured rows, which know their budgets.
    names = [_label(row) for row in (infer if len(infer) == len(rows) else rows)]
    lines = [
        [
            name,
            ms(row.number("measured_ms")),
            interval(ms(row.number("typical_ms")), row.number("low_ms"), row.number("high_ms"), digits=2),
            size(row.number("paged_bytes.typical")),
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    columns = ["method", "measured, private side", "modelled, in an enclave (range)", "paged"]
    return [
        element("h3", "Modelled: the private time in an enclave"),
        element(
            "p",
            "Nothing here was measured in an enclave: the TEE is simulated, and these times are computed from the "
            "constants in the file, which name their sources.",
        ),
        table(columns, lines, caption="Modelled, not measured"),
    ]


def _gives(mine: Figures | None) -> tuple[str, ...]:
    up = _per_record(mine, "bytes_up")
    sent = () if up is None else (f"{size(up)} a record in inference, and the timing of each request",)
    return (*sent, "what the bytes give away is no part of a benchmark: its weights and records are made up")


def _time(row: Figures) -> Dot | None:
    median = row.number("ms_median")
    if median is None:
        return None
    name = _label(row)
    phase = row.text("phase") or ""
    hover = (
        f"{name}, {phase}",
        f"{ms(median)} ({decimal(row.number('ms_min'))} to {decimal(row.number('ms_max'))})",
        f"private {ms(row.number('private_ms'))}, cloud {ms(row.number('cloud_ms'))}",
        f"samples: {count(row.number('samples'))}",
    )
    label = name if phase in (_INFER, "train") else f"{name}: {phase.removeprefix('train ')}"
    return Dot(median, label, hover, row.number("ms_min"), row.number("ms_max"))


def _by_method(found: list[Dot]) -> list[Series]:
    """Delta in a colour of its own."""
    mine = tuple(dot for dot in found if str(dot.y).startswith("delta"))
    rest = tuple(dot for dot in found if not str(dot.y).startswith("delta"))
    pairs = (Series("Delta", mine, 0), Series("the other methods", rest, 6))
    return [one for one in pairs if one.dots]


def _log(title: str) -> dict[str, object]:
    return {"title": title, "type": "log", "dtick": 1, "exponentformat": "none", "separatethousands": True}


def _label(row: Figures) -> str:
    """The method, with its budget where it has one, and its runtime where that is not the usual one."""
    name = row.text("method") or DASH
    key = row.text("key") or ""
    budget = key.rpartition("-")[2]
    if budget.isdigit() and len(budget) >= 5:
        name += f" {int(budget) / 1e6:g} M"
    runtime = row.text("runtime")
    return name if runtime in (None, "eager") else f"{name} ({runtime})"


def _setting(row: Figures) -> str:
    link = row.text("link")
    threads = row.number("threads")
    plural = "thread" if threads == 1 else "threads"
    network = row.text("network") or "a network"
    text = f"{network}, {count(row.number('batch'))} records, {count(threads)} {plural}"
    return text if link in (None, "none") else f"{text}, link {link}"


def _of(rows: Sequence[Figures], method: str) -> Figures | None:
    return next((row for row in rows if row.text("method") == method), None)


def _nearest(rows: Sequence[Figures], mine: Figures | None) -> Figures | None:
    """The main-only model that Delta's row is compared with."""
    if mine is None:
        return None
    macs = mine.number("main_only_macs")
    small = [row for row in rows if row.text("method") == "main-only" and row.number("private_macs") == macs]
    return small[0] if small and macs is not None else None


def _number(row: Figures | None, path: str) -> float | None:
    return None if row is None else row.number(path)


def _per_record(row: Figures | None, path: str) -> float | None:
    value, batch = _number(row, path), _number(row, "batch")
    return None if value is None or not batch else value / batch
