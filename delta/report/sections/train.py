"""`delta train`: accuracies with their controls, what the cloud learned of the labels, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from delta.report.charts import Canvas, Chart, Dot, Series, View, dots, macs_axis, scatter
from delta.report.figures import Figures
from delta.report.markup import Html, element, table
from delta.report.numbers import count, decimal, epsilon_text, interval, millions, percent, size, spread
from delta.report.read import Run
from delta.report.section import CONTROLS, Section, accuracy_rows, claim_list, name_of, tiles, unique
from delta.report.verdict import bounded, cloud_worth, guessed, runs_worth

__all__ = ["accuracy_view", "train_sections"]

_TERMS = frozenset({"main model alone", "random bits", "private MACs", "label leak", "ε and δ", "α"})
_CAPTION = (
    "Accuracy on the test records. The controls say where it comes from: if random bits do as well as Delta, the "
    "cloud adds nothing. The cloud's own guess is no accuracy to be proud of: it is what the cloud learns."
)
_LINES = (
    ("main_only", "main_only_macs", "best model without a cloud", 1, "dash"),
    ("main_alone", "private_macs", "main model alone", 2, "dot"),
    ("delta", "private_macs", "Delta, with the cloud", 0, "solid"),
)


def train_sections(runs: Sequence[Run], canvas: Canvas, include_records: bool) -> list[Section]:
    """A section for each data set: one run in full, several as a comparison."""
    del include_records  # a training's figures hold no records
    sections = []
    for dataset in dict.fromkeys(run.figures.text("dataset") for run in runs):
        some = [run for run in runs if run.figures.text("dataset") == dataset]
        title = f"Training on {dataset or 'records'}"
        sections.append(_single(some[0], canvas, title) if len(some) == 1 else _several(some, canvas, title))
    return sections


def _single(run: Run, canvas: Canvas, title: str) -> Section:
    figures = run.figures
    verdict = _verdict(figures)
    chart = Chart("Accuracy and its controls", _CAPTION, (accuracy_view(figures, ""),))
    seconds = figures.part("stage_seconds")
    times = [(name.replace("_", " "), f"{seconds.number(name) or 0:.1f} s") for name in seconds.values]
    blocks = [
        tiles(
            [
                ("Delta, with the cloud", percent(figures.number("accuracy.delta")), "of the test records"),
                ("main model alone", percent(figures.number("accuracy.main_alone")), "no cloud at all"),
                ("the cloud guesses by itself", *_guess(figures)),
                ("sent per record", size(figures.number("bytes_per_record.up")), "handshake included"),
                ("private MACs a record", millions(figures.number("private_macs")), _cloud_macs(figures)),
            ]
        ),
        canvas.add(chart),
        claim_list(figures, caption="What may be claimed"),
        *([table(["stage", "took"], times, caption="Time of each stage")] if times else []),
    ]
    return Section(title, verdict, tuple(blocks), _keeps(), _gives([run]), _TERMS)


def _several(runs: Sequence[Run], canvas: Canvas, title: str) -> Section:
    helps = [run for run in runs if run.figures.flag("cloud_helps") is not None]
    beats = [run for run in helps if run.figures.flag("cloud_helps") and run.figures.flag("beats_main_only")]
    gains = [gain for run in runs if (gain := _gain(run.figures)) is not None]
    verdict = (
        runs_worth(
            runs=len(helps),
            helps=sum(run.figures.flag("cloud_helps") is True for run in helps),
            beats=len(beats),
            low=min(gains, default=None),
            high=max(gains, default=None),
        ),
        *_leaks(runs),
    )
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_setting(run), []).append(run)
    claims = {_claim(run.figures): run.figures for run in runs}
    details = element(
        "details",
        element("summary", "What may be claimed, and under which conditions"),
        *(claim_list(figures, caption=claim) for claim, figures in claims.items()),
    )
    blocks = [canvas.add(_comparison(groups, runs)), _groups(groups), details]
    return Section(title, verdict, tuple(blocks), _keeps(), _gives(runs), _TERMS)


def accuracy_view(figures: Figures, label: str) -> View:
    """Every accuracy of a run as a row, the cloud's own guess in another colour."""
    own = tuple(
        Dot(value, name, (name, f"{percent(value, digits=2)} of the test records"))
        for _, name, value in accuracy_rows(figures)
    )
    series = [Series("accuracy", own, 0)]
    guess, prior = figures.number("leakage.cloud_label_accuracy"), figures.number("leakage.label_prior")
    if guess is not None:
        name = "leak: what the cloud guesses by itself"
        leak = [Dot(guess, name, (name, f"{percent(guess, digits=2)} of the labels"))]
        if prior is not None:
            floor = f"without any release: {percent(prior)}"
            leak.append(Dot(prior, name, ("always the commonest class", floor), marked=False))
        series.append(Series("label leak (hollow: without any release)", tuple(leak), 5))
    return dots(series, label=label, x={"title": "percent", "rangemode": "tozero", "ticksuffix": " %"})


def _comparison(groups: dict[tuple[str, ...], list[Run]], runs: Sequence[Run]) -> Chart:
    """Accuracy against private MACs where those differ, else one row a setting."""
    macs = {run.figures.number("private_macs") for run in runs}
    if len(macs - {None}) < 2:
        series = []
        for position, (key, name) in enumerate(CONTROLS):
            found = []
            for setting, some in groups.items():
                values = _values(some, f"accuracy.{key}")
                if values:
                    row = ", ".join(setting)
                    hover = (name, row, spread(values, digits=2))
                    found.append(Dot(mean(values), row, hover, min(values), max(values)))
            series.append(Series(name, tuple(found), position))
        shown = [one for one in series if one.dots]
        return Chart("Accuracy and its controls", _CAPTION, (dots(shown, x={"title": "percent"}),))
    views = []
    for claim in dict.fromkeys(_claim(run.figures) for run in runs):
        some = [run for run in runs if _claim(run.figures) == claim]
        views.append(scatter(
            [Series(name, _joined(some, key, at), colour, line) for key, at, name, colour, line in _LINES],
            label=claim,
            x=macs_axis([value for value in macs if value is not None]),
            y={"title": "accuracy, percent"},
        ))  # fmt: skip
    caption = (
        "Accuracy against what the private side computes, with the cloud and without. Dots are means over seeds, bars "
        "reach from the lowest to the highest run. Where the solid line is not above the dashed one, the cloud buys "
        "nothing that the same computing on the private side would not."
    )
    return Chart("Accuracy against private MACs", caption, tuple(views))


def _joined(runs: Sequence[Run], key: str, at: str) -> tuple[Dot, ...]:
    """One dot a budget: Delta's private MACs name it, the model's own stand on the axis."""
    found: dict[float, list[Figures]] = {}
    for run in runs:
        budget, value = run.figures.number("private_macs"), run.figures.number(f"accuracy.{key}")
        if budget is not None and value is not None:
            found.setdefault(budget, []).append(run.figures)
    dots_ = []
    for _, some in sorted(found.items()):
        values = [value for one in some if (value := one.number(f"accuracy.{key}")) is not None]
        macs = [value for one in some if (value := one.number(at)) is not None]
        if not macs:
            continue
        hover = (
            f"{percent(mean(values), digits=2)} ({min(values):.2f} to {max(values):.2f})",
            f"{millions(mean(macs))} MACs on the private side",
            f"runs: {len(values)}",
        )
        dots_.append(Dot(mean(macs) / 1e6, mean(values), hover, min(values), max(values)))
    return tuple(dots_)


def _groups(groups: dict[tuple[str, ...], list[Run]]) -> Html:
    rows = []
    for setting, runs in groups.items():
        cells = [", ".join(setting), count(len(runs))]
        for key, _ in CONTROLS:
            values = _values(runs, f"accuracy.{key}")
            low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
            cells.append(interval(percent(mean(values) if values else None), low, high))
        cells.append(spread(_values(runs, "leakage.cloud_label_accuracy")))
        cells.append(spread(_values(runs, "alpha"), digits=2, unit=""))
        rows.append(cells)
    columns = ["setting", "runs", *(name for _, name in CONTROLS), "the cloud guesses", "α"]
    return table(columns, rows, caption="Means over seeds, and the range of the runs")


def _verdict(figures: Figures) -> tuple[str, ...]:
    return (
        cloud_worth(
            delta=figures.number("accuracy.delta"),
            alone=figures.number("accuracy.main_alone"),
            rival=figures.number("accuracy.main_only"),
            macs=figures.number("private_macs"),
            helps=figures.flag("cloud_helps"),
            beats=figures.flag("beats_main_only"),
        ),
        *_leak(figures),
    )


def _leak(figures: Figures) -> tuple[str, ...]:
    return (
        guessed(figures.number("leakage.cloud_label_accuracy"), figures.number("leakage.label_prior")),
        bounded(
            epsilon=figures.number("privacy.epsilon"),
            delta=figures.number("privacy.delta"),
            ceiling=figures.number("privacy.ceiling_bits"),
        ),
    )


def _leaks(runs: Sequence[Run]) -> tuple[str, ...]:
    """Of several runs the one that gives the most away, for the label; every distinct claim."""
    worst = max(runs, key=lambda run: run.figures.number("leakage.cloud_label_accuracy") or 0.0)
    return unique([
        _leak(worst.figures)[0],
        *(_leak(run.figures)[1] for run in runs),
    ])  # fmt: skip


def _keeps() -> tuple[str, ...]:
    return (
        "the records themselves, and the principal part of what the backbone makes of them",
        "the backbone, the main model, its answers, and the final prediction",
    )


def _gives(runs: Sequence[Run]) -> tuple[str, ...]:
    lines = []
    for run in runs:
        figures = run.figures
        released, labels = figures.number("releases.total"), figures.text("labels.kind")
        lines.append(f"{count(released)} releases of training records, one bit for each value of the message")
        if labels:
            epsilon = figures.number("labels.epsilon")
            lines.append(f"training labels: {labels}{'' if epsilon is None else f', ε = {decimal(epsilon)}'}")
    # A run that went on where it was cut had sent its records before.
    up = _values([run for run in runs if not run.figures.flag("resumed")], "bytes_per_record.up")
    if up:
        lines.append(
            f"{spread(up, unit=' bytes')} a training record, and the order, count and timing of messages"
        )
    guess = _values(runs, "leakage.cloud_label_accuracy")
    if guess:
        lines.append(f"the label of a record: the cloud guesses {spread(guess)} by itself")
    return unique(lines)


def _values(runs: Sequence[Run], path: str) -> list[float]:
    return [value for run in runs if (value := run.figures.number(path)) is not None]


def _gain(figures: Figures) -> float | None:
    delta, alone = figures.number("accuracy.delta"), figures.number("accuracy.main_alone")
    return None if delta is None or alone is None else delta - alone


def _claim(figures: Figures) -> str:
    epsilon = figures.number("privacy.epsilon")
    return "no noise" if epsilon is None else f"ε = {epsilon_text(epsilon)} a release"


def _setting(run: Run) -> tuple[str, ...]:
    figures = run.figures
    return (name_of(run), f"{millions(figures.number('private_macs'))} private MACs", _claim(figures))


def _guess(figures: Figures) -> tuple[str, str]:
    prior = figures.number("leakage.label_prior")
    below = "" if prior is None else f"of the labels; {percent(prior)} without a release"
    return percent(figures.number("leakage.cloud_label_accuracy")), below


def _cloud_macs(figures: Figures) -> str:
    cloud = figures.number("cloud_macs")
    return "" if cloud is None else f"in the cloud: {millions(cloud)}"
