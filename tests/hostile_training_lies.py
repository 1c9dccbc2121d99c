"""What training clouds may answer in place of the truth, by what comes of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from delta.errors import (
    CloudAnswerError,
    CloudTrainingError,
    CloudUnavailableError,
    DeltaError,
    RequestError,
)
from delta.training.cloud import JobState
from tests.hostile_training import Lies


def _with_one(value: float) -> Callable[[Tensor], Tensor]:
    def changed(truth: Tensor) -> Tensor:
        answer = truth.clone()
        answer[-1, 0] = value
        return answer

    return changed


def _adaptive(truth: Tensor) -> Tensor:
    """The truth, or its opposite, by what the cloud computed from the bits."""
    return truth if float(truth.sum()) > 0 else -1e4 * truth


def _garbage(truth: Tensor) -> Tensor:
    return torch.randint(-9, 9, truth.shape, generator=torch.Generator().manual_seed(0)).float()


UNFIT: dict[str, Callable[[Tensor], Any]] = {
    "NaN": _with_one(float("nan")),
    "infinity": _with_one(float("inf")),
    "a class less": lambda truth: truth[:, :-1],
    "a record less": lambda truth: truth[:-1],
    "a record more": lambda truth: torch.cat([truth, truth[:1]]),
    "flat": lambda truth: truth.flatten(),
    "float64": lambda truth: truth.double(),
    "whole numbers": lambda truth: truth.long(),
    "no answer": lambda truth: None,
}
"""Answers that are no logits of these records."""

FALSE: dict[str, Callable[[Tensor], Any]] = {
    "huge": lambda truth: truth * 1e30,
    "zeros": torch.zeros_like,
    "reversed": lambda truth: -truth,
    "sure and wrong": lambda truth: 1e6 * torch.eye(truth.shape[1])[truth.argmin(1)],
    "garbage": _garbage,
    "adaptive": _adaptive,
    "of other records": lambda truth: truth.flip(0),
}
"""Answers that nobody can tell from the truth by their form."""


def changed_weights(
    change: Callable[[dict[str, Tensor]], Any],
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def changed(truth: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = dict(truth)
        change(weights)
        return weights

    return changed


FIRST = "adapter.conv.weight"
WEIGHTS = {
    "one is missing": changed_weights(lambda w: w.pop(FIRST)),
    "one more": changed_weights(lambda w: w.update({"another": torch.zeros(1)})),
    "another name": changed_weights(lambda w: w.update({f"{FIRST}s": w.pop(FIRST)})),
    "another shape": changed_weights(lambda w: w.update({FIRST: w[FIRST][:, :, :2]})),
    "flat": changed_weights(lambda w: w.update({FIRST: w[FIRST].flatten()})),
    "float64": changed_weights(lambda w: w.update({FIRST: w[FIRST].double()})),
    "NaN": changed_weights(lambda w: w.update({FIRST: w[FIRST] * torch.nan})),
    "one infinity": changed_weights(
        lambda w: w.update({"adapter.bn.running_mean": torch.full((8,), torch.inf)})
    ),
    "none": lambda truth: {},
}
STATES: dict[str, tuple[JobState, ...]] = {
    "failed": (JobState("running", 1, 3), JobState("failed", 1, 3, None, "out of memory")),
    "cancelled": (JobState("cancelled"),),
    "ends while it runs": (JobState("running", 3, 3, float("nan")),),
    "says nothing": (),
}
"""Jobs that come to nothing; they have 3 steps."""

COUNTS: dict[str, Iterable[JobState]] = {
    "a step more": (JobState("running", 4, 0),),
    "a step beyond its steps": (JobState("running", 3, 2),),
    "more steps": (JobState("running", 1, 4),),
    "other steps": (JobState("running", 1, 3), JobState("running", 2, 2)),
    "ever more steps": (JobState("running", step, 1) for step in itertools.count()),
    "done with more": (JobState("done", 4, 4),),
}
"""Jobs of 3 steps that say what cannot be."""

ENDLESS: dict[str, tuple[JobState, ...]] = {
    "waits": (JobState("waiting"),),
    "stays at a step": (JobState("running", 2, 3),),
    "comes and goes": (JobState("running", 1, 3), JobState("waiting"), JobState("running", 0, 0)),
}
"""Jobs of 3 steps, told again and again."""

REFUSED: dict[str, tuple[Lies, type[DeltaError]]] = {
    **{f"logits: {name}": (Lies(held_out=lie), CloudAnswerError) for name, lie in UNFIT.items()},
    **{f"weights: {name}": (Lies(weights=lie), CloudAnswerError) for name, lie in WEIGHTS.items()},
    **{f"job: {name}": (Lies(states=lie), CloudTrainingError) for name, lie in STATES.items()},
    **{f"job: {name}": (Lies(states=lie), CloudAnswerError) for name, lie in COUNTS.items()},
    "done, but is not": (Lies(states=(JobState("done"),)), RequestError),
}
SURVIVED: dict[str, Lies] = {f"logits: {name}": Lies(held_out=lie) for name, lie in FALSE.items()}
"""One-shot clouds whose answers are used."""

UPLOADS: dict[str, tuple[Lies, type[DeltaError] | None]] = {
    "cut once": (Lies(cut_after=(20,)), None),
    "cut again and again": (Lies(cut_after=(5, 0, 0, 11, 1, 1, 30)), None),
    "cut for ever": (Lies(cut_after=(0,) * 9), CloudUnavailableError),
    "has more than there is": (Lies(acknowledged=lambda truth, number: 51), CloudAnswerError),
    "has less than nothing": (Lies(acknowledged=lambda truth, number: -1), CloudAnswerError),
    "has all before it came": (Lies(acknowledged=lambda truth, number: 50), RequestError),
    "never has anything": (Lies(acknowledged=lambda truth, number: 0), CloudUnavailableError),
    "forgets and finds in turn": (
        Lies(acknowledged=lambda truth, number: min(truth, 10 if number % 2 else 20)),
        CloudUnavailableError,
    ),
    "forgets once": (Lies(acknowledged=lambda truth, number: 0 if number == 2 else truth), None),
}
STEP_LIES: dict[str, Callable[[Tensor], Any]] = {**UNFIT, **FALSE}
