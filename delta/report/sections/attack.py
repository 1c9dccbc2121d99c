"""`delta attack`: what each attack made of what leaves, beside its floors."""

from __future__ import annotations

from collections.abc import Sequence

from delta.report.charts import Canvas, Chart, Dot, Series, dots
from delta.report.figures import Figures
from delta.report.gallery import NOT_SHOWN, gallery, holds_pictures
from delta.report.markup import Html, element, paragraphs, table
from delta.report.numbers import DASH, count, decimal, interval, pair, percent
from delta.report.read import Run
from delta.report.records import may_show
from delta.report.section import Section, tiles
from delta.report.sections.inference import inference_blocks, inference_verdict
from delta.report.sections.membership import membership_blocks, worst_membership
from delta.report.verdict import drawn, guessed, matched, nothing_proved, too_weak

__all__ = ["attack_sections", "labels_of", "matching_of"]

_GROUND = "no release at all"
_TERMS = frozenset({"SSIM", "matching", "label leak", "floor", "tap"})
_MEMBERSHIP = frozenset({"membership"})
_POSITIVE = ("raw-ir", "raw-input")
_CONTROLS = (*_POSITIVE, "random-bits")
"""Taps that nobody sends: they show what the attack can do at best, and what it does with nothing."""


def attack_sections(runs: Sequence[Run], canvas: Canvas, include_records: bool) -> list[Section]:
    """A section a run."""
    return [_section(run, canvas, include_records) for run in runs]


def _section(run: Run, canvas: Canvas, include_records: bool) -> Section:
    figures = run.figures
    taps = figures.parts("taps")
    matching = matching_of(figures)
    sent = [tap for tap in taps if tap.text("tap") not in _CONTROLS]
    best = _strongest(figures, sent)
    control = [
        value
        for tap in taps
        if tap.text("tap") in _POSITIVE
        and (best is None or _attack(tap) == _attack(best))
        and (value := tap.number("ssim")) is not None
    ]
    floor = _floor(figures)
    smallest = min(
        (row for row in matching if row.text("tap") not in _CONTROLS and row.number("top1") is not None),
        key=lambda row: (row.number("looks") or 1.0, row.number("candidates") or 0.0),
        default=None,
    )
    members = run.figures.parts("membership")
    guess, prior = labels_of(figures)
    verdict = (
        matched(_of(smallest, "top1"), _of(smallest, "candidates")),
        drawn(_of(best, "ssim"), floor, looks=_of(best, "looks")),
        guessed(guess, prior),
        *([worst_membership(members)] if members else []),
        *inference_verdict(figures),
        *unprotected(control),
        nothing_proved(),
    )
    shown = may_show(figures, include_records=include_records)
    examples = figures.parts("examples")
    pictures = holds_pictures(examples)
    blocks: list[Html] = [
        tiles([
            ("images matched", percent(_of(smallest, "top1")), f"among {count(_of(smallest, 'candidates'))}"),
            ("best reconstruction, SSIM", decimal(_of(best, "ssim")), _how(best, floor)),
            ("the cloud guesses by itself", percent(guess), f"of the labels; prior {percent(prior)}"),
        ]),
    ]  # fmt: skip
    for chart in (_drawings(taps, floor), _matches(matching)):
        if chart is not None:
            blocks.append(canvas.add(chart))
    if taps:
        blocks.append(_table(taps))
    if matching:
        blocks.append(_match_table(matching))
    blocks += [*membership_blocks(members, canvas), *inference_blocks(figures)]
    notes = [*_lines(figures, "notes"), *_lines(figures, "membership_notes")]
    blocks += [element("p", note, class_="mute") for note in notes]
    if pictures and shown:
        blocks += [
            element("h3", "Records: the original, what the cloud saw, and what an attacker drew"),
            paragraphs(
                [
                    "Matched says whether the right image scored highest among all candidates.",
                    nothing_proved(),
                ]
            ),
            gallery(examples, what="record"),
        ]
    elif pictures:
        blocks.append(element("p", NOT_SHOWN, class_="mute"))
    name = figures.text("bundle") or run.source
    gives = (
        f"image: {percent(_of(smallest, 'top1'))} matched among {count(_of(smallest, 'candidates'))} candidates, "
        f"drawn at SSIM {decimal(_of(best, 'ssim'))}",
        f"label: {percent(guess)} guessed by the cloud itself",
    )
    return Section(
        f"Attacks on {name}", verdict, tuple(blocks), (), gives, _TERMS | (_MEMBERSHIP if members else frozenset()),
        shows_records=pictures and shown, hides_records=pictures and not shown,
    )  # fmt: skip


def matching_of(figures: Figures) -> list[Figures]:
    """Rows of candidate matching, also of those that a tap holds by itself."""
    found = figures.parts("matching")
    for tap in figures.parts("taps"):
        for row in tap.parts("matching"):
            found.append(Figures({"tap": tap.get("tap"), "looks": tap.get("looks"), **row.values}))
    return found


def labels_of(figures: Figures) -> tuple[float | None, float | None]:
    """What the cloud guesses of the labels, and the prior; percent."""
    labels = figures.part("labels")
    return labels.number("cloud_accuracy"), labels.number("prior")


def _lines(figures: Figures, path: str) -> list[str]:
    found = figures.get(path)
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []


def unprotected(control: Sequence[float]) -> list[str]:
    """Whether the positive control shows that the attack is strong enough to say anything."""
    weak = too_weak(max(control, default=None))
    return [] if weak is None else [weak]


def _strongest(figures: Figures, sent: Sequence[Figures]) -> Figures | None:
    """The drawing of what leaves to be quoted: the attack's own choice of each tap, or the highest SSIM."""
    named = [one for one in figures.parts("strongest") if one.text("tap") not in _CONTROLS]
    return max(named or sent, key=lambda tap: tap.number("ssim") or 0.0, default=None)


def _attack(tap: Figures) -> str:
    return tap.text("attack") or "decoder"


def _how(best: Figures | None, floor: float | None) -> str:
    nothing = f"with nothing: {decimal(floor)}"
    return nothing if best is None else f"{_attack(best)}; {nothing}"


def _floor(figures: Figures) -> float | None:
    """The best SSIM that needs no release: the mean image, or what is drawn of random bits."""
    floors = figures.part("floors")
    found = [floors.number(f"{name}.ssim") or floors.number(name) for name in floors.values]
    return max((value for value in found if value is not None), default=None)


def _drawings(taps: Sequence[Figures], floor: float | None) -> Chart | None:
    found: list[Dot] = []
    control: list[Dot] = []
    for tap in taps:
        value, error = tap.number("ssim"), tap.number("ssim_se")
        if value is None:
            continue
        low, high = (None, None) if error is None else (value - 1.96 * error, value + 1.96 * error)
        name = _drawing(tap)
        hover = (
            name,
            f"SSIM {decimal(value, digits=3)}",
            f"PSNR {decimal(tap.number('psnr'), digits=1)} dB",
            f"perceptual distance {decimal(tap.number('perceptual'), digits=3)}",
            f"class recognised in {percent(tap.number('class_accuracy'))}",
        )
        (control if tap.text("tap") in _CONTROLS else found).append(Dot(value, name, hover, low, high))
    if not found and not control:
        return None
    ground = []
    if floor is not None:
        lines = (_GROUND, f"SSIM {decimal(floor, digits=3)}")
        ground.append(Dot(floor, _GROUND, lines, marked=False))
    series = (
        Series("what leaves", tuple(found), 1),
        Series("controls: nobody sends these", tuple(control), 6),
        Series("floor", tuple(ground), 2),
    )
    caption = (
        "How far the drawings of each attack resemble the original: 1 is the original, the floor is what can be drawn "
        "without seeing anything; the strongest attack counts. Raw IR is the positive control: an attack that cannot "
        "draw from it is too weak to say anything. Bars: 95 % interval of the mean."
    )
    view = dots(
        [one for one in series if one.dots], x={"title": "SSIM of reconstructions", "range": [0, 1.02]}
    )
    return Chart("Reconstruction", caption, (view,))


def _matches(rows: Sequence[Figures]) -> Chart | None:
    found, chance = [], []
    for row in rows:
        top1, candidates = row.number("top1"), row.number("candidates")
        if top1 is None or not candidates:
            continue
        name = f"{_name(row)}, {count(candidates)} candidates".removeprefix(f"{DASH}, ")
        low, high = row.range("interval")
        hover = (
            name,
            f"first: {interval(percent(top1), low, high)}",
            f"median rank {count(row.number('median_rank'))}",
        )
        found.append(Dot(top1, name, hover, low, high))
        by_chance = 100.0 / candidates
        chance.append(
            Dot(by_chance, name, (name, f"by chance: {percent(by_chance, digits=3)}"), marked=False)
        )
    if not found:
        return None
    caption = (
        "For how many releases the right image scores highest among the candidates. A matched image is identified, "
        "whatever its reconstruction looks like. Hollow: chance. Bars: Clopper-Pearson interval."
    )
    series = (Series("matched", tuple(found), 1), Series("chance", tuple(chance), 6))
    return Chart("Candidate matching", caption, (dots(series, x={"title": "percent", "range": [-2, 102]}),))


def _table(taps: Sequence[Figures]) -> Html:
    rows = [
        [
            _name(tap),
            _attack(tap),
            interval(decimal(tap.number("ssim"), digits=3), *_ends(tap), digits=3),
            f"{decimal(tap.number('psnr'), digits=1)} dB",
            decimal(tap.number("perceptual"), digits=3),
            percent(tap.number("class_accuracy")),
            pair(
                percent(tap.number("reidentification.top1")),
                count(tap.number("reidentification.median_rank")),
            ),
            _effort(tap),
        ]
        for tap in taps
    ]
    columns = [
        "what is attacked", "attack", "SSIM (95 %)", "PSNR", "perceptual distance", "class recognised",
        "re-identified / median rank", "effort",
    ]  # fmt: skip
    return table(columns, rows, caption="Reconstruction attacks")


def _match_table(rows: Sequence[Figures]) -> Html:
    lines = [
        [
            _name(row).replace(DASH, "release"),
            count(row.number("candidates")),
            interval(percent(row.number("top1")), *row.range("interval")),
            percent(row.number("top5")),
            count(row.number("median_rank")),
        ]
        for row in rows
    ]
    return table(
        [
            "what is attacked",
            "candidates",
            "right image first (interval)",
            "among the first five",
            "median rank",
        ],
        lines,
        caption="Candidate matching",
    )


def _effort(tap: Figures) -> str:
    """Of a model epochs and size, of a search steps and victims."""
    for kind in ("decoder", "cgan"):
        if (epochs := tap.number(f"{kind}.epochs")) is not None:
            return f"{count(epochs)} epochs, {count(tap.number(f'{kind}.parameters'))} parameters"
    if (steps := tap.number("search.steps")) is not None:
        return f"{count(steps)} steps, {count(tap.number('search.victims'))} victims alone"
    return DASH


def _drawing(tap: Figures) -> str:
    return f"{_name(tap)}: {_attack(tap)}"


def _ends(tap: Figures) -> tuple[float | None, float | None]:
    value, error = tap.number("ssim"), tap.number("ssim_se")
    return (None, None) if value is None or error is None else (value - 1.96 * error, value + 1.96 * error)


def _name(row: Figures) -> str:
    looks = row.number("looks")
    name = row.text("tap") or DASH
    fresh = row.flag("fresh")
    if looks is None or looks <= 1:
        return name
    how = "" if fresh is None else ", fresh noise" if fresh else ", stored"
    return f"{name}, {looks:.0f} looks{how}"


def _of(row: Figures | None, path: str) -> float | None:
    return None if row is None else row.number(path)
