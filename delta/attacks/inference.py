"""Label and attribute inference: what the attacker reads out of observations by means of its own records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from delta.attacks.attributes import attributes_of
from delta.attacks.intervals import clopper_pearson
from delta.attacks.reader import Reader, train_reader
from delta.attacks.tap import Tap
from delta.release.config import InputSpec
from delta.training.fit import Progress, quiet

__all__ = ["Inferred", "infer_attributes", "infer_labels"]


@dataclass(frozen=True)
class Inferred:
    """How often the attacker is right about one question.

    Attributes:
        question: `label`, or an attribute.
        values: possible answers.
        accuracy: percent of victims of whom it is right.
        interval: Clopper-Pearson, 95 %, percent.
        prior: percent that answering the commonest value gives, which needs no observation.
        records: victims.
        epochs: of the attacker's reader.
        own: records of the attacker.
    """

    question: str
    values: int
    accuracy: float
    interval: tuple[float, float]
    prior: float
    records: int
    epochs: int
    own: int

    @property
    def better_than_guessing(self) -> bool:
        """Whether the whole interval lies above the prior."""
        return self.interval[0] > self.prior

    def line(self) -> str:
        """In words that promise nothing."""
        low, high = self.interval
        figures = f"{self.accuracy:.1f} % ({low:.1f} to {high:.1f}), guessing gets {self.prior:.1f} %"
        if self.better_than_guessing:
            return f"{self.question}: the attacker's own reader tells it: {figures}"
        return f"{self.question}: not told beyond guessing by this reader: {figures}; another may do better"

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "question": self.question,
            "values": self.values,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "prior": self.prior,
            "better_than_guessing": self.better_than_guessing,
            "records": self.records,
            "epochs": self.epochs,
            "auxiliary": self.own,
        }


def infer_labels(
    tap: Tap,
    images: Tensor,
    labels: Tensor,
    observed: Tensor,
    truth: Tensor,
    input: InputSpec,
    *,
    classes: int,
    epochs: int,
    looks: int = 1,
    width: int | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> Inferred:
    """Predict the victims' labels by a classifier of the attacker's own: the cloud's model plays no part.

    Args:
        tap: what the attacker sees.
        images: its own, `[n, c, h, w]` in [0, 1], on the device where everything runs.
        labels: their classes, `[n]`.
        observed: of the victims, `[v, *shape]`, as captured.
        truth: their classes, `[v]`.
        input: preprocessing.
        classes: how many there are.
        epochs: of the classifier.
        looks: observations behind each row.
        width: of the classifier; none for its default.
        seed: of the attack.
        progress: told after every step.
    """
    reader = train_reader(
        tap,
        images,
        labels,
        input,
        classes=classes,
        epochs=epochs,
        looks=looks,
        width=width,
        seed=seed,
        progress=progress,
        stage=f"label inference ({tap.name})",
    )
    return _judged("label", classes, reader, observed, truth)


def infer_attributes(
    tap: Tap,
    images: Tensor,
    labels: Tensor,
    observed: Tensor,
    victims: Tensor,
    truth: Tensor,
    input: InputSpec,
    *,
    class_names: tuple[str, ...],
    epochs: int,
    looks: int = 1,
    width: int | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> list[Inferred]:
    """Predict what is not the task's label: each of `attributes_of` by a reader of its own.

    Args:
        tap: what the attacker sees.
        images: its own, `[n, c, h, w]` in [0, 1], on the device where everything runs.
        labels: their classes, `[n]`.
        observed: of the victims, `[v, *shape]`, as captured.
        victims: their images `[v, c, h, w]`, to know the right answers by.
        truth: their classes, `[v]`.
        input: preprocessing.
        class_names: one a class.
        epochs: of each reader.
        looks: observations behind each row.
        width: of the readers; none for their default.
        seed: of the attack.
        progress: told after every step.
    """
    found = []
    for attribute in attributes_of(class_names, images):
        reader = train_reader(
            tap,
            images,
            attribute.of(images, labels),
            input,
            classes=len(attribute.values),
            epochs=epochs,
            looks=looks,
            width=width,
            seed=seed,
            progress=progress,
            stage=f"{attribute.name} ({tap.name})",
        )
        right = attribute.of(victims, truth).cpu()
        found.append(_judged(attribute.name, len(attribute.values), reader, observed, right))
    return found


def _judged(question: str, values: int, reader: Reader, observed: Tensor, truth: Tensor) -> Inferred:
    truth = truth.cpu()
    right = int((reader.answers(observed) == truth).sum())
    low, high = clopper_pearson(right, len(truth))
    return Inferred(
        question=question,
        values=values,
        accuracy=100.0 * right / len(truth),
        interval=(100.0 * low, 100.0 * high),
        prior=100.0 * int(torch.bincount(truth).max()) / len(truth),
        records=len(truth),
        epochs=reader.epochs,
        own=reader.records,
    )
