"""`delta plan` and `delta check`: what a split costs and what stands in its way, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from delta.cli.model_inputs import MODEL, arguments_of, shape_of
from delta.cli.output import say, write_json
from delta.errors import ConfigError, ModelError, spec_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check", "plan"]

_Input = Annotated[str, typer.Option(help="CHANNELSxHEIGHTxWIDTH of a record.")]
_Classes = Annotated[int | None, typer.Option(min=2, help="Classes of one of our models.")]
_Weights = Annotated[Path | None, typer.Option(help="A safetensors file with the model's weights.")]
_Crop = Annotated[
    str | None, typer.Option(help="M:m of the block DCT; default: the largest M that fits, halved.")
]
_Json = Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")]


def plan(
    model: Annotated[str, typer.Option(help=MODEL)] = "resnet18",
    input: _Input = "3x32x32",
    classes: _Classes = None,
    at: Annotated[
        str | None, typer.Option(help="First module that runs in the cloud; default: layer1.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="r of the channel basis.")] = 8,
    dct: _Crop = None,
    basis: Annotated[Literal["svd", "pca"], typer.Option(help="A basis a record, or one for all.")] = "svd",
    offload: Annotated[
        Literal["residual", "principal"], typer.Option(help="Stream of the release.")
    ] = "residual",
    message: Annotated[
        Literal["channel-mean", "projection", "all-channels", "learned"] | None,
        typer.Option(help="Map to the message."),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="k of a projection or of a learned message.")
    ] = None,
    message_stride: Annotated[int, typer.Option(min=1, help="Stride of a learned message.")] = 1,
    layout_patch: Annotated[
        int | None, typer.Option(min=1, help="Side of the patches of a shuffled layout; default: it is kept.")
    ] = None,
    main: Annotated[
        Literal["authors", "light"] | None,
        typer.Option(help="Layout of the main model; default: authors, light with --main-macs or --sweep."),
    ] = None,
    main_macs: Annotated[int | None, typer.Option(min=1, help="Budget of a light main model.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="ε of one release: prints how little it can carry.")
    ] = None,
    delta: Annotated[float, typer.Option(help="δ of one release.")] = 1e-5,
    sweep: Annotated[bool, typer.Option(help="Rank every split point instead.")] = False,
    mpc: Annotated[
        bool, typer.Option("--mpc", help="Model garbled-circuit and lookup-table inference beside it.")
    ] = False,
    weights: _Weights = None,
    json: _Json = None,
) -> None:
    """Count MACs, parameters, bytes and private memory of a split, or rank all split points."""
    from delta.models.plan import plan as make_plan
    from delta.models.plan_table import render_sweep
    from delta.models.sweep import sweep as make_sweep

    if main == "authors" and main_macs is not None:
        raise ConfigError("--main-macs is a budget of the light layout; leave out --main authors")
    if sweep and (at is not None or epsilon is not None):
        raise ConfigError("--sweep tries every split point and reports no ε; leave out --at and --epsilon")
    if sweep and mpc:
        raise ConfigError("--mpc is about the whole network, at no split point; leave out --sweep")
    module, arguments = _build(model, classes, input, weights)
    block, keep = _crop(dct)
    light = main_macs is not None or sweep
    settings: dict[str, Any] = {
        "rank": rank,
        "block": block,
        "keep": keep,
        "basis": basis,
        "offload": offload,
        "message": message,
        "k": channels,
        "message_stride": message_stride,
        "main_layout": main or ("light" if light else "authors"),
        "main_max_macs": main_macs,
    }
    if sweep and layout_patch is not None:
        raise ConfigError("--sweep counts kept layouts; leave out --layout-patch")
    if sweep:
        rows = make_sweep(module, _example(input), **settings)
        if str(json) != "-":
            say(render_sweep(rows))
            say(
                "energy kept: on seeded synthetic 1/f images; ranked by private MACs, then bytes, then energy"
            )
        write_json(json, {"model": model, "arguments": arguments, "rows": [row.to_json() for row in rows]})
        return
    made = make_plan(
        module,
        at=at or "layer1",
        input=shape_of(input),
        epsilon=epsilon,
        delta=delta,
        layout_patch=layout_patch,
        **settings,
    )
    figures = made.to_json()
    figures["model"].update(target=model, arguments=arguments)
    if str(json) != "-":
        say(str(made))
    if mpc:
        from delta.models.modes import blank_record
        from delta.models.mpc import plan_mpc

        modelled = plan_mpc(module, blank_record(module, shape_of(input)))
        figures["mpc"] = modelled.to_json()
        if str(json) != "-":
            say(f"\n{modelled}")
    write_json(json, figures)


def check(
    model: Annotated[str, typer.Argument(help=MODEL)],
    input: _Input = "3x32x32",
    classes: _Classes = None,
    at: Annotated[
        str | None, typer.Option(help="The split point in mind; none asks whether there is any.")
    ] = None,
    dct: _Crop = None,
    weights: _Weights = None,
    json: _Json = None,
) -> None:
    """Name each obstacle to running a model under Delta, and its mend. Exit code 4 where there is one."""
    from delta.models.check import check_model
    from delta.models.plan_table import render_obstacles
    from delta.models.splitting import split_points

    module, _ = _build(model, classes, input, weights)
    block, keep = _crop(dct)
    obstacles = check_model(module, _example(input), at, block=block, keep=keep)
    points = [] if obstacles and at is None else [p.at for p in split_points(module, _example(input))]
    if str(json) != "-":
        say(render_obstacles(obstacles))
        if points:
            say(f"it can be split at: {', '.join(points)}")
    write_json(
        json,
        {
            "model": model,
            "obstacles": [{"where": o.where, "reason": o.reason, "mend": o.mend} for o in obstacles],
            "split_points": points,
        },
    )
    if obstacles:
        raise typer.Exit(spec_of(ModelError).exit_code)


def _example(text: str) -> Tensor:
    import torch

    return torch.zeros(2, *shape_of(text))


def _crop(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    block, colon, keep = text.partition(":")
    if not colon or not block.isdigit() or not keep.isdigit():
        raise ConfigError(f"--dct {text!r} is no crop; write M:m, such as 16:8")
    return int(block), int(keep)


def _build(
    model: str, classes: int | None, input: str, weights: Path | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The module, in eval mode, and the arguments that built it."""
    import torch

    from delta.models.targets import build_target, full_target
    from delta.models.weights import load_weights

    torch.set_num_threads(1)  # one record at a time: threads only get in each other's way
    target = full_target(model)
    arguments = arguments_of(target, classes=classes, shape=shape_of(input))
    module = build_target(target, arguments, allowed={target}).eval()
    if weights is not None:
        load_weights(module, weights)
    return module, arguments
