"""Membership in the cloud model's training set, by the loss: one figure a point, without any shadow model."""

from __future__ import annotations

from delta.attacks.membership.curves import curve_of
from delta.attacks.membership.recipe import Recipe
from delta.attacks.membership.scores import asks_releases, signals_of
from delta.attacks.membership.threshold import loss_scores
from delta.attacks.release_tap import ReleaseTap
from delta.bundle.store import Bundle
from delta.data.records import DataSplits
from delta.device import device_of
from delta.frontier.cell import Cell
from delta.methods.delta.cloud import load_cloud_model
from delta.training.fit import Progress, placed

__all__ = ["membership_auc"]

_DRAWS = 8


def membership_auc(bundle: Bundle, data: DataSplits, cell: Cell, progress: Progress) -> float:
    """AUC of the loss threshold (Yeom et al. 2018, arXiv 1709.01604) against the bundle's own cloud model.

    Members are records that the models were fitted on, as many as there are test records, which are the others. The
    attacker knows the backbone, and asks about releases that it simulates: their loss is a mean over draws of noise.

    Args:
        bundle: of the cell.
        data: its records.
        cell: whose settings say which records were held out.
        progress: told after every batch.
    """
    device = device_of(cell.run.device)
    trusted = frozenset({bundle.manifest.architecture.target})
    tap = ReleaseTap(bundle, allow=trusted)
    model = placed(load_cloud_model(bundle.cloud_part, allowed=trusted), device).eval()
    others = data.test
    members = Recipe(cell.run.training, ()).members(data.train).limited(len(others), seed=cell.run.seed)
    ask = asks_releases(tap, draws=_DRAWS, seed=cell.run.seed + 1)
    known, unknown = (
        loss_scores(
            signals_of(
                [model],
                bundle.manifest.input.preprocess(some.images).to(device),
                some.labels,
                ask,
                progress=progress,
                stage=f"membership, {name}",
            ).loss[0]
        )
        for some, name in ((members, "members"), (others, "others"))
    )
    return curve_of(known, unknown).auc
