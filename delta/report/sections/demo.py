"""`delta demo`: one private stage, three releases, and what each gave away."""

from __future__ import annotations

from collections.abc import Sequence

from delta.report.charts import Canvas, Chart
from delta.report.figures import Figures
from delta.report.gallery import NOT_SHOWN, gallery, holds_pictures
from delta.report.markup import Html, element, paragraphs, table
from delta.report.numbers import DASH, count, decimal, epsilon_text, millions, ms, percent
from delta.report.read import Run
from delta.report.records import may_show
from delta.report.section import CONTROLS, Section, claim_list, tiles, unique
from delta.report.sections.train import accuracy_view
from delta.report.verdict import bounded, cloud_worth, drawn, guessed, matched, nothing_proved

__all__ = ["demo_sections"]

_TERMS = frozenset(
    {
        "main model alone",
        "random bits",
        "private MACs",
        "label leak",
        "ε and δ",
        "matching",
        "SSIM",
        "α",
        "principal part",
    }
)


def demo_sections(runs: Sequence[Run], canvas: Canvas, include_records: bool) -> list[Section]:
    """A section a run."""
    return [_section(run, canvas, include_records) for run in runs]


def _section(run: Run, canvas: Canvas, include_records: bool) -> Section:
    figures = run.figures
    rows = _rows(figures)
    main = figures
    shown = may_show(figures, include_records=include_records)
    pictures = any(holds_pictures(row.parts("examples")) for _, row in rows)
    verdict = (
        cloud_worth(
            delta=main.number("accuracy.delta"),
            alone=main.number("accuracy.main_alone"),
            rival=main.number("accuracy.main_only"),
            macs=main.number("private_macs"),
            helps=main.flag("cloud_helps"),
            beats=main.flag("beats_main_only"),
        ),
        guessed(main.number("leakage.cloud_label_accuracy"), main.number("leakage.label_prior")),
        matched(main.number("leakage.match_top1"), main.number("leakage.match_candidates")),
        drawn(main.number("leakage.ssim"), main.number("leakage.ssim_floor")),
        bounded(
            epsilon=main.number("privacy.epsilon"),
            delta=main.number("privacy.delta"),
            ceiling=main.number("privacy.ceiling_bits"),
        ),
    )
    views = tuple(accuracy_view(row, title) for title, row in rows)
    blocks: list[Html] = [
        tiles([
            ("Delta, with the cloud", percent(main.number("accuracy.delta")), "of the test records"),
            ("main model alone", percent(main.number("accuracy.main_alone")), "no cloud at all"),
            ("best model without a cloud", percent(main.number("accuracy.main_only")),
             f"of the same {millions(main.number('private_macs'))} private MACs"),
            ("the cloud guesses by itself", percent(main.number("leakage.cloud_label_accuracy")), "of the labels"),
            ("images matched", percent(main.number("leakage.match_top1")),
             f"among {count(main.number('leakage.match_candidates'))} candidates"),
            ("sent per record", f"{decimal(main.number('bytes_per_record.up'), digits=1)} B", "handshake included"),
        ]),
        canvas.add(Chart("Accuracy and its controls", "Accuracy on the test records, one release at a time. If random "
                         "bits do as well as Delta, the cloud adds nothing.", views)),
        _table(rows),
    ]  # fmt: skip
    if pictures and shown:
        blocks += _galleries(rows)
    elif pictures:
        blocks.append(element("p", NOT_SHOWN, class_="mute"))
    blocks += [claim_list(row, caption=f"What may be claimed: {title}") for title, row in rows]
    dataset = figures.text("dataset") or "records"
    return Section(
        f"Demonstration on {dataset}",
        verdict,
        tuple(blocks),
        keeps=(
            "the images, the principal part, the main model and the final answer",
            "the noise key: the same query gives the same bytes, and nobody else can make them",
        ),
        gives=_gives(figures, rows),
        terms=_TERMS,
        shows_records=pictures and shown,
        hides_records=pictures and not shown,
    )


def _rows(figures: Figures) -> list[tuple[str, Figures]]:
    """The main row, then the others, each with its title."""
    others = [(row.text("title") or name, row) for name, row in figures.named("rows")]
    return [(figures.text("title") or "main row", figures), *others]


def _gives(figures: Figures, rows: Sequence[tuple[str, Figures]]) -> tuple[str, ...]:
    up = figures.number("bytes_per_record.up")
    lines = [f"{decimal(up, digits=1)} bytes a record, and the order, count and timing of requests"]
    for title, row in rows:
        guess, top1 = row.number("leakage.cloud_label_accuracy"), row.number("leakage.match_top1")
        lines.append(
            f"{title}: the label ({percent(guess)} guessed), and the image ({percent(top1)} matched)"
        )
    return unique(lines)


def _table(rows: Sequence[tuple[str, Figures]]) -> Html:
    columns = ["", *(title for title, _ in rows)]
    lines: list[list[str]] = [
        [name, *(percent(row.number(f"accuracy.{key}")) for _, row in rows)] for key, name in CONTROLS
    ]
    lines += [
        ["α", *(decimal(row.number("alpha")) for _, row in rows)],
        ["private / cloud / wall time a record", *(_times(row) for _, row in rows)],
        ["bytes a record, up / down", *(_bytes(row) for _, row in rows)],
        ["ε a release (δ)", *(_epsilon(row) for _, row in rows)],
        ["ceiling, bits a release", *(decimal(row.number("privacy.ceiling_bits")) for _, row in rows)],
        ["leak: label guessed (prior)", *(_guess(row) for _, row in rows)],
        ["leak: image matched", *(_match(row) for _, row in rows)],
        ["leak: median rank of the right image", *(count(row.number("leakage.match_median_rank")) for _, row in rows)],
        ["leak: SSIM of drawings (mean image)", *(_ssim(row) for _, row in rows)],
        ["fallbacks to the main model", *(count(row.number("fallbacks")) for _, row in rows)],
    ]  # fmt: skip
    return table(columns, lines, caption="Every figure of the run")


def _galleries(rows: Sequence[tuple[str, Figures]]) -> list[Html]:
    blocks = [
        element("h3", "Records: the original, what the cloud saw, and what an attacker drew"),
        paragraphs([
            "Matched says whether the right image scored highest among all candidates. The decoder here is small and "
            "trains for seconds: a strong attack draws better.",
            nothing_proved(),
        ]),
    ]  # fmt: skip
    for title, row in rows:
        examples = row.parts("examples")
        if holds_pictures(examples):
            blocks += [element("h4", title), gallery(examples, what=f"record ({title})")]
    return blocks


def _times(row: Figures) -> str:
    found = [ms(row.number(f"ms_per_record.{name}")) for name in ("private", "cloud", "wall")]
    return DASH if found == [DASH] * 3 else " / ".join(found)


def _bytes(row: Figures) -> str:
    up, down = row.number("bytes_per_record.up"), row.number("bytes_per_record.down")
    return f"{decimal(up, digits=1)} / {decimal(down, digits=1)}"


def _epsilon(row: Figures) -> str:
    epsilon, delta = row.number("privacy.epsilon"), row.number("privacy.delta")
    return "none" if epsilon is None else f"{epsilon_text(epsilon)} ({delta or 0:g})"


def _guess(row: Figures) -> str:
    return f"{percent(row.number('leakage.cloud_label_accuracy'))} ({percent(row.number('leakage.label_prior'))})"


def _match(row: Figures) -> str:
    return f"{percent(row.number('leakage.match_top1'))} of {count(row.number('leakage.match_candidates'))}"


def _ssim(row: Figures) -> str:
    return f"{decimal(row.number('leakage.ssim'))} ({decimal(row.number('leakage.ssim_floor'))})"
