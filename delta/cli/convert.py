"""`delta convert`: a bundle of any method, from a whole model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delta.cli.model_inputs import MODEL, arguments_of, nested, shape_of
from delta.cli.output import check_writable, progress, say, table, warn, write_json
from delta.errors import ConfigError

if TYPE_CHECKING:
    from delta.data.records import DataSplits
    from delta.methods.whole import WholeModel
    from delta.training.conversion import Converted

__all__ = ["convert"]


def convert(
    method: Annotated[str, typer.Argument(help="Its name, such as slalom; `delta methods` lists them.")],
    model: Annotated[str, typer.Option(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; an earlier one there is replaced.")],
    input: Annotated[
        str | None, typer.Option(help="CHANNELSxHEIGHTxWIDTH of a record; default: the data's, or 3x32x32.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="Classes of one of our models; default: the data's.")
    ] = None,
    argument: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of the model's builder, in YAML; repeatable.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file with the model's weights.")] = None,
    mean: Annotated[
        str, typer.Option(help="Of preprocessing, (pixel - mean)/std: one number, or one a channel.")
    ] = "0.5",
    std: Annotated[str, typer.Option(help="Likewise.")] = "0.25",
    data: Annotated[
        str | None, typer.Option(help="Records to calibrate, train and measure on, such as embedded.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Training records at most; test records in proportion.")
    ] = None,
    test_limit: Annotated[int | None, typer.Option(min=1, help="Test records at most.")] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Of training before the bundle is written.")] = 0,
    batch: Annotated[int, typer.Option(min=2, help="Records a training step.")] = 64,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE of the method, in YAML; with --epochs also plan.learning_rate=0.001; repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and choice of records.")] = 0,
    device: Annotated[str, typer.Option(help="Of training and measuring: cpu, cuda or cuda:N.")] = "cpu",
    name: Annotated[
        str | None, typer.Option(help="Under which a cloud serves it; default: the model's and the method's.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Make a bundle of a method from a whole model: trained if asked, calibrated and measured on data.

    Nothing is sent: both halves run in this process. `delta methods` lists the methods.
    """
    from delta.bundle.store import check_replaceable, save_bundle
    from delta.data.load import load_dataset
    from delta.privacy.disk_ledger import DiskLedger
    from delta.release.noise import NoiseKey
    from delta.training.conversion import Conversion
    from delta.training.conversion import convert as make

    asked = Conversion(method, nested(change or ()), epochs, batch, seed, device)
    asked.check(data=data is not None)
    check_replaceable(out)
    check_writable(json)
    splits = None
    if data is not None:
        splits = load_dataset(data, limit=limit, test_limit=test_limit, seed=seed)
    whole = _whole(
        model,
        input=input,
        classes=classes,
        arguments=nested(argument or (), option="--argument"),
        data=splits,
        seed=seed,
        weights=weights,
        spec=(mean, std),
        name=name or f"{model.partition(':')[2] or model}-{method}".lower(),
    )
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        ledger = out.absolute().parent / "ledger.jsonl"
        if epochs and asked.cls.facts.releases:
            # What the cloud's weights learn from releases of training records is spent as if those were sent.
            book = stack.enter_context(DiskLedger(ledger, warn=warn))
            options = {"key": NoiseKey.beside(out), "ledger": book}
        made = make(whole, asked, data=splits, options=options, progress=stack.enter_context(progress()))
    save_bundle(made.bundle, out)
    figures = _figures(made, splits, out) | {"ledger": str(ledger) if options else None}
    write_json(json, figures)
    if str(json) != "-":
        _show(made, figures, weights=weights, out=out)


def _whole(
    model: str,
    *,
    input: str | None,
    classes: int | None,
    arguments: dict[str, Any],
    data: DataSplits | None,
    seed: int,
    weights: Path | None,
    spec: tuple[str, str],
    name: str,
) -> WholeModel:
    """The model with its weights; shape and classes as the options say, else as the data have them."""
    from delta.methods.whole import WholeModel
    from delta.models.targets import OURS, full_target
    from delta.models.weights import load_weights
    from delta.release.config import InputSpec

    target = full_target(model)
    shape = shape_of(input or "3x32x32") if input or data is None else data.image_shape
    if target in OURS and classes is None and data is not None:
        classes = len(data.class_names)
    known = arguments_of(target, classes=classes, shape=shape)
    mean, std = (
        _numbers(text, shape[0], f"--{what}") for text, what in zip(spec, ("mean", "std"), strict=True)
    )
    preprocessing = InputSpec.parse({"shape": shape, "mean": mean, "std": std}, what="preprocessing")
    whole = WholeModel.build(
        target, input=preprocessing, arguments={**known, **arguments}, seed=seed, name=name
    )
    if weights is not None:
        load_weights(whole.module, weights)
    return whole


def _numbers(text: str, channels: int, option: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, channels):
        raise ConfigError(f"{option} {text!r} is not one number, or {channels} of them with commas between")
    return values * channels if len(values) == 1 else values


def _figures(made: Converted, data: DataSplits | None, out: Path) -> dict[str, Any]:
    from delta.methods.registry import method_class

    bundle = made.bundle
    cls = method_class(bundle.manifest.method)
    measured = made.measured
    return {
        "method": bundle.manifest.method,
        "name": bundle.manifest.name,
        "bundle": str(out),
        "network": bundle.manifest.architecture.target,
        "protects": list(cls.facts.protects),
        "rests_on": list(cls.facts.rests_on),
        "claim": cls.claim(bundle.manifest),
        "private_macs": bundle.facts.private_macs,
        "cloud_macs": bundle.facts.cloud_macs,
        "peak_private_bytes": bundle.facts.peak_private_bytes,
        "settings": bundle.manifest.settings,
        "trained": made.trained,
        "data": None if data is None else data.name,
        "test_records": None if measured is None else measured.records,
        "accuracy": None if measured is None else measured.accuracy,
        "answered_alone": None if measured is None else measured.answered_alone,
        "accuracy_whole": None if made.whole is None else made.whole.accuracy,
        "tee": "simulated",
    }


def _show(made: Converted, figures: dict[str, Any], *, weights: Path | None, out: Path) -> None:
    from delta.methods.registry import method_class
    from delta.models.targets import OURS

    rows = [
        ["network", figures["network"]],
        ["protects", ", ".join(figures["protects"]) or "nothing"],
        ["rests on", ", ".join(figures["rests_on"])],
        ["claimed", figures["claim"]],
        ["private MACs a record", f"{figures['private_macs']:,}"],
        ["cloud MACs a record", f"{figures['cloud_macs']:,}"],
    ]
    if made.measured is not None:
        if made.whole is not None:
            rows.append(["accuracy of the whole model, all private", f"{made.whole.accuracy:.1f} %"])
        rows.append(
            ["accuracy of the method", f"{made.measured.accuracy:.1f} % of {made.measured.records:,} records"]
        )
    table(f"{figures['name']}: method {figures['method']} (tee: simulated)", ["", figures["method"]], rows)
    if made.trained:
        say(f"trained {made.trained}")
    elif weights is None:
        warn("the model has untrained weights; give --weights FILE, or --data and --epochs")
    if made.measured is not None and made.measured.answered_alone:
        warn(f"{made.measured.answered_alone} records were answered by the private side alone")
    facts = method_class(figures["method"]).facts
    own = figures["network"] not in OURS and figures["network"].partition(":")[0] != "delta.models.main_model"
    allow = f" --allow {figures['network']}" if own else ""
    if figures["ledger"] is not None:
        say(f"the releases of the training records are in {figures['ledger']}")
    say(f"bundle: {out}")
    if facts.offloads:
        say(f"serve it with: delta serve --bundle {out}{allow}")
    cloud = " --cloud 127.0.0.1:50051" if facts.offloads else ""
    say(f"ask it with: delta infer IMAGES --bundle {out}{cloud}{allow}")
