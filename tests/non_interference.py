"""The checker of invariant I1: what leaves is the same, bit for bit, whatever the cloud says.

It runs a method against the honest cloud and every hostile one, and against the honest one with everything
changed that must not matter: another main model, other weights of the fusion, other facts. It returns the
names of the runs whose transcript differs from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from delta.bundle.store import Bundle
from delta.errors import CloudError
from delta.methods.base import Method, RecordIds
from delta.methods.registry import method_class
from tests.clouds import Script, ScriptedCloud, Sent, honest, hostile_clouds

DEADLINE_S = 0.02

Make = Callable[[Bundle], Method]
Batch = tuple[Tensor, RecordIds]


def transcript_of(method: Method, script: Script, batches: Sequence[Batch]) -> list[Sent]:
    """All that a method submits while it infers the batches, one after the other."""
    with ScriptedCloud(script) as cloud:
        method.prepare(cloud, deadline_s=DEADLINE_S)
        for x, ids in batches:
            try:
                method.infer(x, ids)
            except CloudError:
                continue  # allowed by the contract; what was sent still counts
    return cloud.transcript


def private_variants(bundle: Bundle) -> dict[str, Bundle]:
    """Bundles of the same release configuration whose other private parts differ."""
    generator = torch.Generator().manual_seed(1)
    other_main = {
        name: torch.randn(t.shape, generator=generator).to(t.dtype).abs() if name.startswith("main.") else t
        for name, t in bundle.private.items()
    }
    facts = bundle.facts
    confident = {
        name: 1e3 * t if name.startswith("main.") and t.is_floating_point() else t
        for name, t in bundle.private.items()
    }

    def like(private: dict[str, Tensor] | None = None, **changes: object) -> Bundle:
        return Bundle(
            bundle.manifest, facts.model_copy(update=changes), private or bundle.private, bundle.cloud
        )

    return {
        "another main model": like(other_main),
        "a surer main model": like(confident),
        "α = 0": like(alpha=0.0),
        "another α": like(alpha=3.0, fusion="sum"),
        "other figures": like(figures={"main_alone": 1.0}),
    }


def interferences(make: Make, bundle: Bundle, batches: Sequence[Batch]) -> list[str]:
    """Names of the runs whose transcript differs from the honest one; none if the method keeps I1."""
    half = method_class(bundle.manifest.method).cloud_half(bundle.cloud_part, device=torch.device("cpu"))

    def fair() -> Script:
        return honest(
            method_class(bundle.manifest.method).cloud_half(bundle.cloud_part, device=torch.device("cpu"))
        )

    expected = transcript_of(make(bundle), fair(), batches)
    found = [
        f"cloud: {name}"
        for name, script in hostile_clouds(half).items()
        if transcript_of(make(bundle), script, batches) != expected
    ]
    found += [
        f"private side: {name}"
        for name, variant in private_variants(bundle).items()
        if transcript_of(make(variant), fair(), batches) != expected
    ]
    return found
