"""`delta attack`: what can be got out of what a bundle sends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from delta.cli.output import check_writable, progress, say, table, write_json
from delta.errors import ConfigError

if TYPE_CHECKING:
    from delta.attacks.report import AttackReport

__all__ = ["attack"]


def attack(
    bundle: Annotated[Path, typer.Argument(help="Folder of the whole bundle.")],
    data: Annotated[
        str, typer.Option(help="The data that it was made for, such as embedded or cifar10:PATH.")
    ],
    taps: Annotated[
        str | None,
        typer.Option(
            help="What is attacked, with commas between: release, raw-ir, random-bits; of another method its name, "
            "raw-input, random-bits; default: all of them."
        ),
    ] = None,
    attacks: Annotated[
        str,
        typer.Option(
            help="Which attacks, with commas between; there are also cgan, optimisation, jigsaw (of a shuffled "
            "layout), membership, label-inference, attributes and linkability."
        ),
    ] = "matching,labels,decoder",
    candidates: Annotated[
        str | None,
        typer.Option(help="Images that matching chooses from; default: 1000,50000 or all there are."),
    ] = None,
    observations: Annotated[
        str | None,
        typer.Option(
            help="Looks at a record under fresh noise; default: 1,5,20, or 1 of a tap that is slow."
        ),
    ] = None,
    patch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Match as if the layout were cut into such patches and shuffled; default: what the release says.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of decoder and GANs.")] = 30,
    width: Annotated[int, typer.Option(min=4, help="Channels of the first level of decoder and GANs.")] = 48,
    auxiliary: Annotated[
        int | None,
        typer.Option(
            min=2, help="The attacker's own records; default: all training records, 4,000 of a slow tap."
        ),
    ] = None,
    victims: Annotated[
        int | None, typer.Option(min=1, help="Test records attacked; default: 1,000, or all there are.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    searched: Annotated[
        int, typer.Option(min=1, help="Victims of the optimisation attack, which searches for each anew.")
    ] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Of that search.")] = 300,
    shadows: Annotated[
        int, typer.Option(min=4, help="Models that membership inference is calibrated on.")
    ] = 16,
    pool: Annotated[
        int | None,
        typer.Option(min=8, help="Training records that these draw their halves from; default: all."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Records that --json shows as pictures.")] = 0,
    include_records: Annotated[bool, typer.Option(help="Show records of your own data.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option(help="pkg.mod:callable that the bundle may build here; repeatable.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Attack what a bundle's private half sends: match candidates, guess labels, draw the images, and more.

    The cloud is in this process: nothing is released, and no ledger is debited.
    """
    from delta.attacks.membership.recipe import recipe_of
    from delta.attacks.settings import AttackSettings
    from delta.attacks.suite import run_attacks
    from delta.bundle.store import load_bundle
    from delta.data.load import load_dataset

    settings = AttackSettings.parse(
        {
            "attacks": _names(attacks, "--attacks"),
            "taps": () if taps is None else _names(taps, "--taps"),
            "candidates": _numbers(candidates, "--candidates"),
            "observations": _numbers(observations, "--observations"),
            "patch": patch,
            "epochs": epochs,
            "width": width,
            "auxiliary": auxiliary,
            "victims": victims,
            "searched": searched,
            "steps": steps,
            "shadows": shadows,
            "pool": pool,
            "examples": examples,
            "seed": seed,
            "device": device,
        },
        what="delta attack",
    )
    if examples and data != "embedded" and not include_records:
        raise ConfigError(
            f"--examples {examples} would show records of {data}; add --include-records if the report may hold them"
        )
    if examples and json is None:
        raise ConfigError("--examples shows records in the report; say where with --json PATH")
    check_writable(json)
    loaded = load_bundle(bundle)
    splits = load_dataset(data, seed=seed)
    with progress() as watch:
        report = run_attacks(
            loaded,
            splits,
            settings,
            recipe=recipe_of(loaded, bundle),
            allow=tuple(allow or ()),
            progress=watch,
        )
    write_json(json, {**report.to_json(), "source": data})
    if str(json) != "-":
        _show(report)


def _names(text: str, option: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ConfigError(f"{option} {text!r} is no list; write names with commas between")
    return names


def _numbers(text: str | None, option: str) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ConfigError(f"{option} {text!r} is no list of whole numbers; write such as 1000,50000")
    return tuple(int(part) for part in parts)


def _show(report: AttackReport) -> None:
    say(
        f"{report.bundle} (method {report.method}), {report.victims:,} records of {report.data} attacked with "
        f"{report.auxiliary:,} of the attacker's own; nothing was released (tee: simulated)"
    )
    if report.matching:
        table(
            "Candidate matching: which image was it?",
            ("tap", "looks", "candidates", "right one first", "95 %", "among five", "median rank"),
            [
                [
                    row.tap + ("" if row.patch is None else f", shuffled {row.patch}×{row.patch}"),
                    str(row.looks),
                    f"{row.result.candidates:,}",
                    f"{row.result.top1:.1f} %",
                    f"{row.result.interval[0]:.1f} to {row.result.interval[1]:.1f}",
                    f"{row.result.top5:.1f} %",
                    f"{row.result.median_rank:,.0f}",
                ]
                for row in report.matching
            ],
        )
    if report.taps:
        strongest = {(one["tap"], one["attack"], str(one["looks"])) for one in report.strongest_by_tap()}
        rows = [
            [row.tap, row.attack, str(row.looks), *_scores(row.scores), f"{row.effort['seconds']:.0f} s"]
            for row in report.taps
        ]
        for row in rows:
            row[1] += " (strongest)" if tuple(row[:3]) in strongest else ""
        mean = report.floors.get("mean_image")
        if mean is not None:
            rows.append(["floor", "the mean image", "", *_scores(mean), ""])
        table(
            f"Drawings (decoder and cgan: a U-Net, {report.settings.epochs} epochs, width {report.settings.width})",
            ("tap", "attack", "looks", "SSIM", "PSNR", "perceptual", "class seen", "re-identified", "took"),
            rows,
        )
    for title, columns, cells in report.further.tables():
        table(title, columns, cells)
    for note in (*report.notes, *report.further.lines()):
        say(note)
    say(report.verdict())


def _scores(scores: dict[str, object]) -> list[str]:
    again = scores["reidentification"]
    first = again["top1"] if isinstance(again, dict) else float("nan")
    return [
        f"{scores['ssim']:.3f} ± {scores['ssim_se']:.3f}",
        f"{scores['psnr']:.1f} dB",
        f"{scores['perceptual']:.3f}",
        f"{scores['class_accuracy']:.1f} %",
        f"{first:.1f} %",
    ]
