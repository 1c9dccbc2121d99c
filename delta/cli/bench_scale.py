"""`delta bench scale`: how costs grow with the batch, the image, the rank, and the clients at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from delta.cli.bench_latency import epsilon_of, numbers
from delta.cli.bench_output import show_scale
from delta.cli.bench_processes import environment, launchers, own_cores
from delta.cli.output import check_writable, say, write_json

__all__ = ["scale"]


def scale(
    axis: Annotated[
        Literal["all", "batch", "image", "rank", "clients"], typer.Option(help="What is varied.")
    ] = "all",
    values: Annotated[
        str | None, typer.Option(help="Its values, commas between; default: some of each.")
    ] = None,
    methods: Annotated[str, typer.Option(help="all, or names with commas between.")] = "delta,cloud-only",
    model: Annotated[
        str, typer.Option(help="resnet18, resnet34, resnet_small, he_cnn, or package.module:callable.")
    ] = "resnet_small",
    channels: Annotated[int, typer.Option(min=1, help="Of a record.")] = 1,
    size: Annotated[int, typer.Option(min=4, help="Height and width of a record.")] = 32,
    classes: Annotated[int | None, typer.Option(min=2, help="Of one of our models; default: 10.")] = None,
    at: Annotated[str, typer.Option(help="Where Delta splits it.")] = "layer1",
    epsilon: Annotated[str, typer.Option(help="ε of a release of Delta, and of dp-input; or none.")] = "8",
    batch: Annotated[int, typer.Option(min=1, help="Records a call, where they are not varied.")] = 16,
    rounds: Annotated[int, typer.Option(min=3, help="Each runs every case once, in turn.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.1, help="That one case may take over all rounds.")] = 10.0,
    device: Annotated[str, typer.Option(help="Of the cloud: cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of weights and records.")] = 0,
    plots: Annotated[Path | None, typer.Option(help="Folder for plots.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Time inference over a range of batches, images, ranks, or clients at a time; one thread a client."""
    from delta.bench.contenders import Setup
    from delta.bench.latency import Schedule
    from delta.bench.networks import chosen_methods, network_of
    from delta.bench.scale import AXES, Axis, run_scale
    from delta.device import device_of
    from delta.errors import ConfigError
    from delta.models.targets import full_target

    check_writable(json)
    device_of(device)
    if axis == "all" and values is not None:
        raise ConfigError("--values are of one axis; give --axis batch, image, rank or clients")
    chosen = chosen_methods(methods)

    def setup_of(side: int) -> Setup:
        whole, network = network_of(model, shape=(channels, side, side), classes=classes, seed=seed)
        return Setup(whole, network, at=at, epsilon=epsilon_of(epsilon), batch=batch, seed=seed)

    rows: dict[Axis, list[dict[str, Any]]] = {}
    axes: tuple[Axis, ...] = tuple(AXES) if axis == "all" else (axis,)
    for name in axes:
        rows[name] = run_scale(
            name,
            AXES[name] if values is None else numbers(values, "--values"),
            size=size,
            setup_of=setup_of,
            methods=chosen,
            schedule=Schedule(batches=(batch,), rounds=rounds, seconds=seconds, train=False, seed=seed),
            launchers=launchers(device=device, allow=[full_target(model)]),
            available=own_cores(),
            told=lambda text: typer.echo(text, err=True),
        )
        if str(json) != "-":
            show_scale(name, rows[name])
    if plots is not None:
        from delta.bench.plots import plot_scale

        for name, some in rows.items():
            plot_scale(some, plots / f"scale-{name}.png", x=name)
        if str(json) != "-":
            say(f"plots: {plots}")
    write_json(
        json,
        {
            "kind": "bench-scale",
            "rows": [row for some in rows.values() for row in some],
            "environment": environment(device),
            "seed": seed,
        },
    )
