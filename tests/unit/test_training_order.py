"""What order, names and flags of an upload tell of the classes: nothing, in the worst case that an owner can make.

The records come sorted by class, are named after it, and those held out come last. The attacker sees positions,
flags and the labels of all records but a few, and is to tell the labels of those.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delta.release.noise import NoiseKey
from delta.training.config import LabelConfig
from delta.training.private_stage import Labelled
from delta.training.uploads import Uploads, make_uploads
from tests.trained import SIZE, Trained

CLASSES, FIT, HELD = 10, 1500, 300
FLAKE = 1e-6
"""Chance that an upload in random order fails a bound below; the keys are fixed, so none does by chance."""


class _AsTheyCome(NoiseKey):
    """The seeded fault: records go in the order that the owner has them in."""

    def order(self, names: Any) -> list[int]:
        return list(range(len(names)))


class _ByName(NoiseKey):
    """Another: they are sorted, by names that carry the class."""

    def order(self, names: Any) -> list[int]:
        return sorted(range(len(names)), key=lambda i: names[i])


class _HeldOutLast(NoiseKey):
    """Another: those to train on are mixed, and those held out come behind them."""

    def order(self, names: Any) -> list[int]:
        return sorted(super().order(names), key=lambda i: i >= FIT)


def _sorted_by_class(count: int, what: str) -> Labelled:
    labels = torch.arange(count) * CLASSES // count
    names = tuple(f"class{label}-{what}-{i:04d}" for i, label in enumerate(labels.tolist()))
    pixels = torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(count))
    return Labelled(pixels, labels, names, tuple(f"patient of class {label}" for label in labels.tolist()))


@pytest.fixture(scope="module")
def worst() -> tuple[Labelled, Labelled]:
    return _sorted_by_class(FIT, "fit"), _sorted_by_class(HELD, "held")


@pytest.fixture(scope="module")
def uploaded(trained: Trained, worst: tuple[Labelled, Labelled]) -> Any:
    """Uploads under a key, made once."""
    made: dict[tuple[type, bytes], Uploads] = {}
    released = trained.stages["noise"]

    def upload(key: NoiseKey, secret: bytes) -> Uploads:
        if (type(key), secret) not in made:
            made[type(key), secret] = make_uploads(
                released.private,
                released.release,
                fit=worst[0],
                held_out=worst[1],
                classes=CLASSES,
                labels=LabelConfig(),
                key=key,
            )
        return made[type(key), secret]

    return upload


def _truth(uploads: Uploads, worst: tuple[Labelled, Labelled]) -> Tensor:
    return torch.cat([part.y for part in worst])[uploads.origin]


def _bound(trials: int, rate: float) -> float:
    """Rate that a binomial count passes with a chance of at most FLAKE (Hoeffding 1963)."""
    return rate + math.sqrt(math.log(1 / FLAKE) / (2 * trials))


# Attacks: each returns the labels that it tells for the target positions


def _neighbours(known: Tensor, target: Tensor, truth: Tensor, *, k: int) -> Tensor:
    """The commonest label among the k nearest positions whose label is known."""
    places = known.nonzero().flatten()
    distance = (target[:, None] - places[None]).abs()
    nearest = places[distance.topk(k, largest=False).indices]
    return nn.functional.one_hot(truth[nearest], CLASSES).sum(1).argmax(1)


def _linear(known: Tensor, target: Tensor, truth: Tensor) -> Tensor:
    """A linear model on smooth functions of the position."""
    features = torch.stack(
        [torch.cos(math.pi * i * torch.arange(len(truth)) / len(truth)) for i in range(16)], dim=1
    ).double()
    onehot = nn.functional.one_hot(truth, CLASSES).double()
    gram = features[known].T @ features[known] + 1e-3 * torch.eye(16, dtype=torch.float64)
    weights = torch.linalg.solve(gram, features[known].T @ onehot[known])
    return (features[target] @ weights).argmax(1)


ATTACKS = {
    "the nearest": lambda *seen: _neighbours(*seen, k=1),
    "five neighbours": lambda *seen: _neighbours(*seen, k=5),
    "twenty neighbours": lambda *seen: _neighbours(*seen, k=20),
    "linear": _linear,
}


def _accuracies(uploads: Uploads, worst: tuple[Labelled, Labelled], *, target: str) -> dict[str, float]:
    """Of each attack, on the held-out records, or on every fourth of those to train on."""
    truth, held = _truth(uploads, worst), uploads.releases.held_out
    if target == "held out":
        hidden = held
    else:
        hidden = torch.zeros_like(held)
        hidden[(~held).nonzero().flatten()[::4]] = True
    places = hidden.nonzero().flatten()
    known = ~hidden & ~held
    return {
        name: float((attack(known, places, truth) == truth[places]).double().mean())
        for name, attack in ATTACKS.items()
    }


SECRETS = [bytes([i]) * 32 for i in range(3)]


@pytest.mark.parametrize("secret", SECRETS, ids=["a", "b", "c"])
@pytest.mark.parametrize(("target", "trials"), [("held out", HELD), ("others", FIT // 4)])
def test_positions_tell_a_label_no_better_than_chance(uploaded, worst, secret, target, trials):
    found = _accuracies(uploaded(NoiseKey(secret), secret), worst, target=target)
    assert max(found.values()) < _bound(trials, 1 / CLASSES)  # 10 % and 15, or 14, points


@pytest.mark.parametrize(("fault", "least"), [(_AsTheyCome, 0.8), (_ByName, 0.95)])
def test_the_same_attacks_read_an_upload_that_is_not_mixed(uploaded, worst, fault, least):
    """The bound is not loose: of an upload in its owner's order nearly all labels are told."""
    uploads = uploaded(fault(SECRETS[0]), SECRETS[0])
    others = _accuracies(uploads, worst, target="others")
    assert min(others[name] for name in ("the nearest", "five neighbours", "twenty neighbours")) > least
    assert others["linear"] > 0.6
    if fault is _ByName:  # those held out lie between their class and the next
        assert _accuracies(uploads, worst, target="held out")["the nearest"] > 0.5


@pytest.mark.parametrize("secret", SECRETS, ids=["a", "b", "c"])
def test_the_first_and_the_last_of_each_class_are_anywhere(uploaded, worst, secret):
    """Rank correlation of position and label, times √n, is standard normal where there is none."""
    uploads = uploaded(NoiseKey(secret), secret)
    assert abs(_correlation(_truth(uploads, worst).double())) < 5.0  # 1 in 1.7 million
    assert abs(_correlation(uploads.origin.double())) < 5.0


def test_that_correlation_is_seen_where_there_is_one(uploaded, worst):
    uploads = uploaded(_AsTheyCome(SECRETS[0]), SECRETS[0])
    assert _correlation(_truth(uploads, worst).double()) > 20


def _correlation(values: Tensor) -> float:
    ranks = torch.arange(len(values), dtype=torch.float64)
    return float(torch.corrcoef(torch.stack([ranks, values]))[0, 1]) * math.sqrt(len(values))


# Held-out records among the others


def _unevenness(held_out: Tensor, windows: int = 12) -> float:
    """Largest distance of a window's share of held-out records from the share of all."""
    parts = torch.tensor_split(held_out.double(), windows)
    return max(abs(float(part.mean()) - float(held_out.double().mean())) for part in parts)


EVEN = math.sqrt(math.log(2 * 12 / FLAKE) / (2 * (FIT + HELD) / 12))
"""Of 12 windows: Hoeffding's bound holds without replacement too."""


@pytest.mark.parametrize("secret", SECRETS, ids=["a", "b", "c"])
def test_held_out_records_are_mixed_evenly_among_the_others(uploaded, worst, secret):
    uploads = uploaded(NoiseKey(secret), secret)
    held = uploads.releases.held_out
    assert int(held.sum()) == HELD
    assert _unevenness(held) < EVEN
    # Neighbours are held out together as often as two records drawn at random.
    pairs = int((held[1:] & held[:-1]).sum())
    expected = HELD * (HELD - 1) / (FIT + HELD)
    assert abs(pairs - expected) < 5 * math.sqrt(expected)
    # The flag tells no class: each has its share.
    counts = torch.bincount(_truth(uploads, worst)[held], minlength=CLASSES)
    assert counts.tolist() == [HELD // CLASSES] * CLASSES


@pytest.mark.parametrize("fault", [_AsTheyCome, _HeldOutLast])
def test_held_out_records_behind_the_others_are_seen(uploaded, fault):
    assert _unevenness(uploaded(fault(SECRETS[0]), SECRETS[0]).releases.held_out) > EVEN


# The order itself


def test_the_order_depends_on_the_key_and_on_the_set_of_names_alone():
    names = [f"class{i // 10}-{i:04d}" for i in range(100)]
    key = NoiseKey(SECRETS[0])
    ordered = [names[i] for i in key.order(names)]
    assert sorted(ordered) == names
    for shuffled in (names[::-1], names[50:] + names[:50]):
        assert [shuffled[i] for i in key.order(shuffled)] == ordered
    assert [names[i] for i in NoiseKey(SECRETS[1]).order(names)] != ordered
    fewer = names[:40]
    assert [fewer[i] for i in key.order(fewer)] == [name for name in ordered if name in set(fewer)]
    renamed = [f"{name}x" for name in names]
    assert [renamed[i] for i in key.order(renamed)] != [f"{name}x" for name in ordered]
    assert key.order([]) == []


def test_every_permutation_of_three_names_comes_equally_often():
    orders = [tuple(NoiseKey(i.to_bytes(32, "big")).order(["a", "b", "c"])) for i in range(3000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert all(abs(count - 500) < 5 * math.sqrt(500 * 5 / 6) for count in counts)


def test_the_order_is_unrelated_to_the_noise_and_to_the_names_of_releases(uploaded):
    """Neither the ids in the ledger nor the bits come sorted, as they would if one key served both."""
    uploads = uploaded(NoiseKey(SECRETS[0]), SECRETS[0])
    for rows in (uploads.release_ids, uploads.releases.bits):
        assert abs(_correlation(rows[:, 0].double())) < 5.0
