"""Labels as they leave: disclosed, or through keyed k-ary randomized response (DESIGN, privacy 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from delta.errors import InputError
from delta.privacy.events import RandomizedResponseLabel
from delta.privacy.ledger import Debit
from delta.release.ids import ReleaseIdentity
from delta.release.noise import NoiseKey
from delta.training.config import LabelConfig

__all__ = ["LABEL_MECHANISM", "disclose_labels"]

LABEL_MECHANISM = "delta/label-response/1"
"""Identifier of the mechanism: which keyed integer keeps a label, and which replaces it."""

_WORD = 1 << 64


def disclose_labels(
    labels: Tensor,
    *,
    records: Sequence[str],
    subjects: Sequence[str],
    classes: int,
    config: LabelConfig,
    key: NoiseKey,
) -> tuple[Tensor, list[Debit]]:
    """The labels that the cloud is told, and what a ledger must enter before they are sent.

    Randomized response (Warner 1965; k-ary: Kairouz, Bonawitz & Ramage 2016, arXiv 1602.07387) tells the true
    label with probability e^ε/(e^ε + k − 1), any other one with 1/(e^ε + k − 1). It is drawn from the noise key
    by record and label, so that telling a label again tells the same and costs nothing, and a corrected label
    is answered independently and debited anew.

    Args:
        labels: true labels, `[n]` int64.
        records: record ids, `[n]`.
        subjects: the person whom each is about, `[n]`.
        classes: k.
        config: how labels are disclosed.
        key: of the answers. With the same key a label is told the same in every upload; with another one it is
            told anew, and debited.

    Returns:
        `[n]` int64 and the debits; none where labels are disclosed as they are.

    Raises:
        InputError: a label is not below `classes`, or ids are not one a record.
    """
    if not len(labels) == len(records) == len(subjects):
        raise InputError(
            f"{len(labels)} labels, {len(records)} record ids and {len(subjects)} subjects differ"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"labels must lie in [0, {classes})")
    if config.epsilon is None:
        return labels.clone(), []
    mechanism = f"{LABEL_MECHANISM} epsilon={config.epsilon!r} classes={classes}"
    event = RandomizedResponseLabel(config.epsilon)
    # The small probability is the one that is computed, and rounded up: ε holds up to 1e-6 at its largest.
    change = math.ceil(_WORD * ((classes - 1) / (math.exp(config.epsilon) + classes - 1)))
    keep = _WORD - change
    told, debits = [], []
    for label, record, subject in zip(labels.tolist(), records, subjects, strict=True):
        identity = ReleaseIdentity(subject, record, label.to_bytes(8, "big"), "", mechanism)
        first, second = (int(value) for value in key.uniforms(identity, 2).tolist())
        other = (second * (classes - 1)) >> 64  # uniform over the other labels, up to 2⁻⁶⁰
        told.append(label if first < keep else other + (other >= label))
        debits.append(Debit(subject, key.release_id(identity), event))
    return torch.tensor(told, dtype=torch.int64), debits
