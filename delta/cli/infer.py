"""`delta infer`: classify images through a bundle's private half and a cloud."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delta.cli.ledger import named, spent_figures
from delta.cli.output import check_writable, say, table, warn, write_json

if TYPE_CHECKING:
    from delta.errors import DeltaError
    from delta.methods.base import MethodFacts, Prediction
    from delta.privacy.disk_ledger import DiskLedger
    from delta.privacy.ledger import Budget
    from delta.release.noise import NoiseKey

__all__ = ["infer", "noise_key_of"]

_DELTA = 1e-5
"""δ at which ε displays what a subject has spent."""


def infer(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    bundle: Annotated[Path, typer.Option(help="Folder of the whole bundle.")],
    cloud: Annotated[
        str | None, typer.Option(help="HOST:PORT; none does without, where the method can.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a request.")] = 32,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the cloud.")] = 10.0,
    allow: Annotated[
        list[str] | None, typer.Option(help="pkg.mod:callable that the bundle may build here; repeatable.")
    ] = None,
    noise_key: Annotated[
        Path | None,
        typer.Option(help="Key of the noise, drawn on first use; default: noise.key beside the bundle."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(help="Ledger of what was released; default: ledger.jsonl beside the bundle."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Of each subject from now on: unlimited, mu=2.5, epsilon=8 or epsilon=8,delta=1e-5; "
            "default: the ledger's own."
        ),
    ] = None,
    subject: Annotated[str, typer.Option(help="The person whom the images are about, if one.")] = "",
    require_cloud: Annotated[bool, typer.Option(help="Fail where the cloud's answer is missing.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Classify images. Nothing leaves this process but what the bundle's method sends: see `delta methods`."""
    import torch
    from delta_client import Client

    from delta.bundle.store import load_bundle
    from delta.data.images import find_images, load_image
    from delta.methods.registry import method_class
    from delta.privacy.budget import parse_budget
    from delta.privacy.disk_ledger import DiskLedger
    from delta.release.ids import RecordIds

    _check_address(cloud)
    limit = None if budget is None else parse_budget(budget)
    check_writable(json)
    loaded = load_bundle(bundle)
    spec = loaded.manifest.input
    files = find_images(paths)
    channels, height, width = spec.shape
    images = torch.stack([load_image(path, channels=channels, size=(height, width)) for path in files])
    records = spec.preprocess(images)
    facts = method_class(loaded.manifest.method).facts
    release = loaded.manifest.release
    sends = cloud is not None and facts.releases
    noisy = facts.releases and not (release is not None and release.sigma is None)
    if sends and not noisy:
        _check_unlimited(limit, "--budget")
    where = ledger if ledger is not None else bundle.absolute().parent / "ledger.jsonl"
    keyed = noisy or (facts.releases and release is not None and release.keyed)
    key = noise_key_of(bundle, noise_key) if keyed else None
    if sends and not noisy:
        # The key names the releases: without one the ledger would take a repeated query for a new release.
        key = noise_key_of(where, noise_key)

    rows: list[dict[str, Any]] = []
    predictions: list[Prediction] = []
    with ExitStack() as stack:
        options: dict[str, Any] = {"allow": tuple(allow or ())}
        spending: DiskLedger | None = None
        if sends:
            spending = stack.enter_context(DiskLedger(where, budget=limit, warn=warn))
            if not noisy:
                _check_unlimited(spending.budget, f"ledger {spending.path}")
            options["ledger"] = spending
        client = stack.enter_context(Client(loaded, cloud=cloud, deadline_s=deadline, key=key, **options))
        for start in range(0, len(files), batch):
            part = records[start : start + batch]
            prediction = client.predict(part, RecordIds(subjects=[subject] * len(part)))
            predictions.append(prediction)
            chances = torch.softmax(prediction.logits, dim=1)
            for path, chance in zip(files[start : start + batch], chances, strict=True):
                best = int(chance.argmax())
                rows.append(
                    {
                        "path": str(path),
                        "label": loaded.manifest.class_names[best],
                        "confidence": round(float(chance[best]), 4),
                        "used_cloud": prediction.used_cloud,
                        "reason": prediction.reason,
                    }
                )
        privacy = None if spending is None else _privacy(spending, subject)
    fallen = [p for p in predictions if not p.used_cloud and p.reason != "no-cloud"]
    if fallen and require_cloud:
        raise _error_of(fallen[0], facts)
    summary = _summary(predictions, len(files))
    write_json(
        json, {"method": facts.name, "records": rows, **summary, "privacy": privacy, "tee": "simulated"}
    )
    if str(json) != "-":
        _print(rows, summary, privacy, facts)
    if fallen:
        warn(_advice(fallen[0], facts))


def noise_key_of(bundle: Path, path: Path | None) -> NoiseKey:
    """The owner's noise key: at `path`, or `noise.key` beside the bundle (or ledger), drawn on first use.

    Raises:
        ConfigError: `path` is named and not there: another key would give the same records fresh noise.
    """
    from delta.errors import ConfigError
    from delta.release.noise import NoiseKey

    if path is not None and not path.exists():
        raise ConfigError(
            f"--noise-key {path} is not there; leave the option out to draw one beside the bundle"
        )
    return NoiseKey.beside(bundle) if path is None else NoiseKey.load(path)


def _print(
    rows: list[dict[str, Any]], summary: dict[str, Any], privacy: dict[str, Any] | None, facts: MethodFacts
) -> None:
    table(
        "Predictions",
        ["image", "class", "confidence", "answered by"],
        [
            [
                row["path"],
                row["label"],
                f"{100 * row['confidence']:.1f} %",
                _answered_by(facts, row["used_cloud"], row["reason"]),
            ]
            for row in rows
        ],
    )
    ms, size = summary["ms_per_record"], summary["bytes_per_record"]
    say(
        f"{len(rows)} images: private {ms['private']:.2f} ms, cloud {ms['cloud']:.2f} ms, "
        f"wall {ms['wall']:.2f} ms, {size['up']:.0f} bytes up and {size['down']:.0f} down a record "
        "(tee: simulated)"
    )
    if privacy is not None:
        say(_privacy_line(privacy))


def _answered_by(facts: MethodFacts, used_cloud: bool, reason: str) -> str:
    """Which side's models an answer comes from; in Delta's words where it has a main model."""
    if facts.name == "delta":
        return "main + cloud" if used_cloud else f"main alone ({reason})"
    if not facts.offloads:
        return "private side"
    if used_cloud:
        return "private + cloud" if facts.falls_back else "cloud"
    return f"private side alone ({reason})"


def _check_unlimited(budget: Budget | None, where: str) -> None:
    from delta.errors import PrivacyParameterError
    from delta.privacy.budget import budget_text

    if budget is not None and not isinstance(budget, str):
        raise PrivacyParameterError(
            f"the bundle releases without noise, which spends without bound, and {where} says "
            f"{budget_text(budget)}; say --budget unlimited, or train with noise"
        )


def _privacy(ledger: DiskLedger, subject: str) -> dict[str, Any]:
    return {
        "ledger": str(ledger.path),
        "budget": ledger.budget,
        "subject": subject,
        "delta": _DELTA,
        **spent_figures(ledger.spent(subject), ledger.budget, delta=_DELTA),
    }


def _privacy_line(privacy: dict[str, Any]) -> str:
    budget, mu = privacy["budget"], privacy["joint_mu"]
    spent = (
        f"μ = {mu:.4g}, ε = {privacy['epsilon']:.4g} at δ = {privacy['delta']:g}"
        if mu is not None
        else "no claim, since releases without noise went out"
    )
    limit = "unlimited" if budget == "unlimited" else f"μ = {budget:.4g}"
    return (
        f"ledger {privacy['ledger']}: subject {named(privacy['subject'])}, {privacy['releases']} releases, "
        f"{spent}; budget {limit}"
    )


def _error_of(prediction: Prediction, facts: MethodFacts) -> DeltaError:
    from delta.errors import BudgetExceededError, CloudUnavailableError

    kind = BudgetExceededError if prediction.reason == "budget" else CloudUnavailableError
    return kind(_advice(prediction, facts))


def _check_address(cloud: str | None) -> None:
    from delta_server.config import parse_listen

    from delta.errors import ConfigError

    if cloud is not None and parse_listen(cloud)[1] == 0:
        raise ConfigError(f"{cloud!r} names no port; give the HOST:PORT that the cloud has printed")


def _advice(prediction: Prediction, facts: MethodFacts) -> str:
    mend = {
        "unreachable": "look at the cloud's log",
        "deadline": "raise --deadline, or look at the cloud's load",
        "overloaded": "try again later, or raise --queue of the cloud",
        "mismatch": "serve the cloud part of this very bundle",
        "budget": "the subject's privacy budget is spent",
    }.get(prediction.reason, "look at the cloud's log")
    who = "the main model" if facts.name == "delta" else "the private side"
    text = f"{who} answered alone ({prediction.reason}): {prediction.detail}"
    return text if ";" in prediction.detail else f"{text}; {mend}"  # most details say what to do already


def _summary(predictions: list[Prediction], records: int) -> dict[str, Any]:
    costs = [prediction.cost for prediction in predictions]
    return {
        "ms_per_record": {
            "private": sum(cost.private_ms for cost in costs) / records,
            "cloud": sum(cost.cloud_ms for cost in costs) / records,
            "wall": sum(cost.wall_ms for cost in costs) / records,
        },
        "bytes_per_record": {
            "up": sum(cost.bytes_up for cost in costs) / records,
            "down": sum(cost.bytes_down for cost in costs) / records,
        },
    }
