"""Notes under a plan: where its figures differ from the slides', computed from the plan's own numbers.

The slides' table "MAC of each module" (CVPR 2024) gives, in millions of MACs:

                 M_bb + M_main    SVD     DCT     M_res
    ResNet-18    48.3             0.52    0.26    547
    ResNet-34    437              1.6     0.7     3500
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from delta.models.macs import count_macs, macs_by_module
from delta.models.main_model import build_main

if TYPE_CHECKING:
    from delta.models.plan import Plan
    from delta.models.splitting import Parts

__all__ = ["SLIDES", "SlideFigures", "notes_on"]


@dataclass(frozen=True)
class SlideFigures:
    """One row of the slides' table, MACs, for the input of that row.

    Attributes:
        name: as the slides print it.
        input_shape: of a record.
        private: backbone and main model.
        svd: one projection of r channels.
        dct: two M³ products a block and channel.
        cloud: M_res.
    """

    name: str
    input_shape: tuple[int, int, int]
    private: float
    svd: float
    dct: float
    cloud: float


SLIDES = {
    "delta.models:resnet18": SlideFigures("ResNet-18", (3, 32, 32), 48.3e6, 0.52e6, 0.26e6, 547e6),
    "delta.models:resnet34": SlideFigures("ResNet-34", (3, 224, 224), 437e6, 1.6e6, 0.7e6, 3.5e9),
}


def notes_on(plan: Plan, parts: Parts, adapter: nn.Module) -> list[str]:
    """The notes of a plan.

    Args:
        plan: the plan, its notes still empty.
        parts: the split model.
        adapter: of the cloud model.
    """
    notes = [*_general(plan)]
    slides = SLIDES.get(plan.model["target"])
    if slides is not None and slides.input_shape == parts.input_shape:
        notes += [
            *_decomposition(plan, slides),
            *(_cloud(plan, slides, parts, adapter) if plan.settings.layout == "kept" else ()),
            *_private(plan, slides),
        ]
    return notes


def _general(plan: Plan) -> Iterator[str]:
    macs = plan.macs
    convention = macs["svd"] + macs["dct"]
    problem = ", the eigenvalue problem not counted" if plan.settings.basis == "svd" else ""
    yield (
        f"macs.svd and macs.dct ({_m(convention)} together) follow the slides' convention; our code executes "
        f"{_m(macs['decomposition'])} in macs.decomposition, message and reconstruction included{problem}."
    )
    if plan.private_macs >= macs["whole"]:
        yield (
            f"the private side ({_m(plan.private_macs)}) costs no less than the whole model "
            f"({_m(macs['whole'])}): split earlier, or take a smaller main model."
        )
    yield (
        f"framing: bytes_per_record.up is the payload of {plan.bytes_per_record['up']} bytes; headers, and "
        "the session's handshake once, come on top and are measured when it runs."
    )
    if plan.privacy is not None:
        yield (
            f"at ε = {plan.privacy['epsilon']:g}, δ = {plan.privacy['delta']:g} a release carries at most "
            f"{plan.privacy['ceiling_bits']:.2g} bits about its record, whatever its length."
        )


def _decomposition(plan: Plan, slides: SlideFigures) -> Iterator[str]:
    for name, theirs in (("svd", slides.svd), ("dct", slides.dct)):
        ours = plan.macs[name]
        verdict = "agrees with" if _agrees(ours, theirs) else "differs from"
        yield f"macs.{name} = {_m(ours)} {verdict} the slides' {_m(theirs)} for {slides.name}."


def _cloud(plan: Plan, slides: SlideFigures, parts: Parts, adapter: nn.Module) -> Iterator[str]:
    body = macs_by_module(parts.body, torch.zeros(1, *parts.ir_shape))
    k, h, w = plan.shapes["message"]
    ours = {
        "downsample convolutions": sum(n for name, n in body.items() if name.endswith(".downsample")),
        "classifier": sum(n for name, n in body.items() if name == "fc"),
        f"{k}→{parts.ir_shape[0]} adapter": count_macs(adapter, torch.zeros(1, k, h, w)),
    }
    bare = plan.macs["cloud"] - sum(ours.values())
    verdict = (
        f"without these it is {_m(bare)}, the slides' {_m(slides.cloud)}"
        if _agrees(bare, slides.cloud)
        else f"without these it is {_m(bare)}, and the slides say {_m(slides.cloud)}"
    )
    counted = ", ".join(f"{name} {_m(macs)}" for name, macs in ours.items())
    yield f"macs.cloud = {_m(plan.macs['cloud'])} counts the whole: {counted}; {verdict}."


def _private(plan: Plan, slides: SlideFigures) -> Iterator[str]:
    if plan.settings.main_layout != "authors":
        return
    backbone, main = plan.macs["backbone"], plan.macs["main"]
    ours, rank = backbone + main, plan.settings.rank
    if _agrees(ours, slides.private):
        yield f"backbone and main model {_m(ours)} agree with the slides' {_m(slides.private)}."
        return
    by_rank = {r: backbone + _authors_macs(plan, rank=r) for r in range(1, rank + 1)}
    nearest = min(by_rank, key=lambda r: abs(by_rank[r] - slides.private))
    yield (
        f"backbone {_m(backbone)} and main model {_m(main)} make {_m(ours)} at rank {rank}, the published "
        f"code's layout; the slides say {_m(slides.private)}, and the nearest rank up to {rank} is "
        f"{nearest} with {_m(by_rank[nearest])}."
    )


def _authors_macs(plan: Plan, *, rank: int) -> int:
    channels, h, w = plan.shapes["main_input"]
    if plan.settings.basis == "pca":
        channels = rank
    settings = {**plan.settings.main, "in_channels": channels, "rank": rank}
    with torch.device("meta"):
        main = build_main(**settings)
    return count_macs(main, torch.zeros(1, channels, h, w))


def _agrees(ours: float, theirs: float) -> bool:
    """Whether two figures are the same to the two or three digits that the slides print."""
    return abs(ours - theirs) <= 0.02 * theirs


def _m(macs: float) -> str:
    return f"{macs / 1e6:.2f} M" if macs < 1e7 else f"{macs / 1e6:.1f} M"
