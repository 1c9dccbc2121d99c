"""`delta bench latency`: what each method costs for the same network, side by side, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from delta.cli.bench_modelled import check_enclave, modelled_rows, show_modelled
from delta.cli.bench_output import draw, draw_accuracy, show_rows
from delta.cli.bench_processes import environment, launchers, own_cores
from delta.cli.model_inputs import nested, shape_of
from delta.cli.output import check_writable, say, warn, write_json
from delta.errors import ConfigError

if TYPE_CHECKING:
    from delta.bench.jobs import Link

__all__ = ["epsilon_of", "latency", "link_of", "numbers"]


def latency(
    methods: Annotated[str, typer.Option(help="all, or names with commas between.")] = "all",
    model: Annotated[
        str, typer.Option(help="resnet18, resnet34, resnet_small, he_cnn, or package.module:callable.")
    ] = "resnet_small",
    input: Annotated[str, typer.Option(help="CHANNELSxHEIGHTxWIDTH of a record.")] = "1x32x32",
    classes: Annotated[int | None, typer.Option(min=2, help="Of one of our models; default: 10.")] = None,
    argument: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of the model's builder; repeatable.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file; default: seeded weights.")] = None,
    at: Annotated[str, typer.Option(help="Where Delta splits it.")] = "layer1",
    rank: Annotated[int, typer.Option(min=1, help="r of Delta's channel basis.")] = 8,
    epsilon: Annotated[str, typer.Option(help="ε of a release of Delta, and of dp-input; or none.")] = "8",
    private_macs: Annotated[
        str | None, typer.Option(help="Budgets of Delta's private path and of main-only, commas between.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Records a call; several with commas.")] = "32",
    threads: Annotated[str, typer.Option(help="Threads of the private side; several with commas.")] = "1",
    link: Annotated[
        str, typer.Option(help="none, or MBITS:MS of a simulated link, such as 100:5; inference only.")
    ] = "none",
    train: Annotated[bool, typer.Option(help="Whether training steps are timed, too.")] = True,
    runtime: Annotated[
        Literal["eager", "folded", "bfloat16", "compiled", "compiled-bfloat16"],
        typer.Option(help="Of inference with private-only, main-only and Delta's main model."),
    ] = "eager",
    rounds: Annotated[int, typer.Option(min=3, help="Each runs every case once, in turn.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.1, help="That one case may take over all rounds.")] = 30.0,
    device: Annotated[str, typer.Option(help="Of the cloud: cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of weights and records.")] = 0,
    enclave: Annotated[
        str | None,
        typer.Option(
            help="Add an enclave's modelled costs, apart: sgx1-128, sgx1-256, sgx2-512g, or its MiB."
        ),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for plots.")] = None,
    accuracy: Annotated[
        Path | None, typer.Option(help="Results of scripts/measure_training.py, drawn with --plots.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Time inference and training steps of every method, client and cloud in processes of their own."""
    from delta.bench.contenders import Setup
    from delta.bench.latency import Schedule, run_latency
    from delta.bench.networks import chosen_methods, contenders_of, network_of
    from delta.device import device_of

    check_writable(json)
    if accuracy is not None and plots is None:
        raise ConfigError("--accuracy is drawn into a folder; give --plots DIR, too")
    check_enclave(enclave)
    chosen = chosen_methods(methods)
    device_of(device)
    schedule = Schedule(
        batches=numbers(batch, "--batch"),
        threads=numbers(threads, "--threads"),
        link=link_of(link),
        rounds=rounds,
        seconds=seconds,
        train=train,
        runtime=runtime,
        seed=seed,
    )
    budgets = (None,) if private_macs is None else numbers(private_macs, "--private-macs")
    whole, network = network_of(
        model,
        shape=shape_of(input),
        classes=classes,
        seed=seed,
        arguments=nested(argument or (), option="--argument"),
        weights=weights,
    )
    setup = Setup(
        whole,
        network,
        at=at,
        rank=rank,
        epsilon=epsilon_of(epsilon),
        private_macs=budgets,
        batch=schedule.batches[0],
        seed=seed,
    )
    quiet = str(json) == "-"
    skipped: dict[str, str] = {}
    found = contenders_of(setup, chosen, skipped=skipped if methods == "all" else None)
    for what, why in skipped.items():
        warn(f"{what} is left out: {why}")
    rows = run_latency(
        found,
        schedule,
        launchers(device=device, allow=[whole.architecture.target]),
        available=own_cores(),
        told=lambda text: typer.echo(text, err=True),
    )
    kind = "seeded, not trained" if weights is None else str(weights)
    figures = {
        "kind": "bench-latency",
        "rows": rows,
        "skipped": skipped,
        "environment": environment(device) | {"weights": kind},
        "seed": seed,
    }
    if not quiet:
        show_rows(rows)
    if enclave is not None:
        figures["modelled"] = modelled = modelled_rows(rows, enclave)
        if not quiet:
            show_modelled(modelled, enclave)
    if plots is not None:
        draw(rows, plots)
        if accuracy is not None:
            draw_accuracy(accuracy, plots)
        if not quiet:
            say(f"plots: {plots}")
    write_json(json, figures)


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Positive integers with commas between.

    Raises:
        ConfigError: something else.
    """
    parts = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} {text!r}: give positive numbers with commas between, such as 1,2,4")
    return tuple(int(part) for part in parts)


def link_of(text: str) -> Link | None:
    """`none`, or `MBITS:MS`.

    Raises:
        ConfigError: neither.
    """
    from delta.bench.jobs import Link

    if text == "none":
        return None
    rate, _, delay = text.partition(":")
    try:
        return Link(bandwidth_mbps=float(rate), delay_ms=float(delay))
    except ValueError:
        raise ConfigError(
            f"--link {text!r} is no link; give none, or MBITS:MS such as 100:5 (100 Mbit/s, 5 ms one way)"
        ) from None


def epsilon_of(text: str) -> float | None:
    """A positive number, or none.

    Raises:
        ConfigError: neither.
    """
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"--epsilon {text!r} is neither a number above 0 nor none")
    return value
