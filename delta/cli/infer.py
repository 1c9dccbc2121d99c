"""`delta infer`: classify images through a bundle's private half and a cloud."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delta.cli.output import check_writable, say, table, warn, write_json

if TYPE_CHECKING:
    from delta.methods.base import Prediction
    from delta.release.noise import NoiseKey

__all__ = ["infer", "noise_key_of"]


def infer(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    bundle: Annotated[Path, typer.Option(help="Folder of the whole bundle.")],
    cloud: Annotated[str | None, typer.Option(help="HOST:PORT; none runs the main model alone.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a request.")] = 32,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the cloud.")] = 10.0,
    allow: Annotated[
        list[str] | None, typer.Option(help="pkg.mod:callable that the bundle may build here; repeatable.")
    ] = None,
    noise_key: Annotated[
        Path | None,
        typer.Option(help="Key of the noise, drawn on first use; default: noise.key beside the bundle."),
    ] = None,
    require_cloud: Annotated[bool, typer.Option(help="Fail where the cloud's answer is missing.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Classify images. Nothing but the release leaves this process."""
    import torch
    from delta_client import Client

    from delta.bundle.store import load_bundle
    from delta.data.images import find_images, load_image
    from delta.errors import CloudUnavailableError
    from delta.release.ids import RecordIds

    _check_address(cloud)
    check_writable(json)
    loaded = load_bundle(bundle)
    spec = loaded.manifest.input
    files = find_images(paths)
    channels, height, width = spec.shape
    images = torch.stack([load_image(path, channels=channels, size=(height, width)) for path in files])
    records = spec.preprocess(images)
    release = loaded.manifest.release
    key = noise_key_of(bundle, noise_key) if release is not None and release.sigma is not None else None

    rows: list[dict[str, Any]] = []
    predictions: list[Prediction] = []
    with Client(loaded, cloud=cloud, deadline_s=deadline, key=key, allow=tuple(allow or ())) as client:
        for start in range(0, len(files), batch):
            prediction = client.predict(records[start : start + batch], RecordIds())
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
    fallen = [p for p in predictions if not p.used_cloud and p.reason != "no-cloud"]
    if fallen and require_cloud:
        raise CloudUnavailableError(_advice(fallen[0]))
    summary = _summary(predictions, len(files))
    write_json(json, {"records": rows, **summary, "tee": "simulated"})
    if str(json) != "-":
        table(
            "Predictions",
            ["image", "class", "confidence", "answered by"],
            [
                [
                    row["path"],
                    row["label"],
                    f"{100 * row['confidence']:.1f} %",
                    "main + cloud" if row["used_cloud"] else f"main alone ({row['reason']})",
                ]
                for row in rows
            ],
        )
        ms, size = summary["ms_per_record"], summary["bytes_per_record"]
        say(
            f"{len(files)} images: private {ms['private']:.2f} ms, cloud {ms['cloud']:.2f} ms, "
            f"wall {ms['wall']:.2f} ms, {size['up']:.0f} bytes up and {size['down']:.0f} down a record "
            "(tee: simulated)"
        )
    if fallen:
        warn(_advice(fallen[0]))


def noise_key_of(bundle: Path, path: Path | None) -> NoiseKey:
    """The owner's noise key: at `path`, or `noise.key` beside the bundle's folder, which is drawn on first use.

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


def _check_address(cloud: str | None) -> None:
    from delta_server.config import parse_listen

    from delta.errors import ConfigError

    if cloud is not None and parse_listen(cloud)[1] == 0:
        raise ConfigError(f"{cloud!r} names no port; give the HOST:PORT that the cloud has printed")


def _advice(prediction: Prediction) -> str:
    mend = {
        "unreachable": "look at the cloud's log",
        "deadline": "raise --deadline, or look at the cloud's load",
        "overloaded": "try again later, or raise --queue of the cloud",
        "mismatch": "serve the cloud part of this very bundle",
        "budget": "the subject's privacy budget is spent",
    }.get(prediction.reason, "look at the cloud's log")
    text = f"the main model answered alone ({prediction.reason}): {prediction.detail}"
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
