"""What a DP-SGD training fixes before its first step, and what it has spent."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from delta.config import Strict
from delta.errors import BundleError, MethodError, PrivacyParameterError
from delta.methods.dp_sgd.accounting import epsilon_of_steps, noise_multiplier_for

__all__ = ["DpSgdPlan", "Spent"]

_BELOW, _ABOUT = 0.98, 0.002
"""A stated ε may be so much below the one computed here: accountants have errors, and differ by version."""


class DpSgdPlan(Strict):
    """Noise, sampling and descent.

    Attributes:
        records: size of the training set; taken as public.
        batch: records a step, on average: each is drawn with probability batch/records.
        steps: in all; no further one is taken.
        noise_multiplier: standard deviation of the noise on the summed gradients, over `max_grad_norm`.
        max_grad_norm: L2 norm to which each record's gradient is clipped.
        delta: at which ε is told.
        learning_rate: of SGD.
        momentum: of SGD.
        weights: where training starts: `fresh` from a seed, or `given` by the model, which the claim leaves out.
    """

    records: int = Field(ge=1)
    batch: int = Field(ge=1)
    steps: int = Field(ge=1)
    noise_multiplier: float = Field(gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    learning_rate: float = Field(default=0.5, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weights: Literal["fresh", "given"] = "fresh"

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.batch > self.records:
            raise ValueError(f"batch {self.batch} is above the {self.records} records")
        if self.delta * self.records >= 1:
            raise ValueError(
                f"delta must be well below one over the {self.records} records, or publishing a record outright "
                "would satisfy it"
            )
        return self

    @classmethod
    def of(
        cls,
        *,
        records: int | None,
        batch: int,
        steps: int | None,
        epsilon: float | None,
        noise_multiplier: float | None,
        **others: Any,  # noqa: ANN401
    ) -> Self:
        """A plan of a noise multiplier, or the one that keeps all steps within ε.

        Raises:
            PrivacyParameterError: a number without a default is missing, or no noise keeps ε.
            ConfigError: a number is out of range.
            MethodError: opacus is not installed.
        """
        if (epsilon is None) == (noise_multiplier is None):
            raise PrivacyParameterError(
                "method 'dp-sgd' has no default noise; say either epsilon or noise_multiplier"
            )
        if records is None or steps is None:
            raise PrivacyParameterError(
                "method 'dp-sgd' accounts for its steps over a training set; say both records and steps"
            )
        known = {"records": records, "batch": batch, "steps": steps, **others}
        what = "method 'dp-sgd'"
        if noise_multiplier is None:
            draft = cls.parse({**known, "noise_multiplier": 1.0}, what=what)
            noise_multiplier = noise_multiplier_for(
                epsilon=epsilon or 0.0, delta=draft.delta, sample_rate=draft.sample_rate, steps=steps
            )
        return cls.parse({**known, "noise_multiplier": noise_multiplier}, what=what)

    @property
    def sample_rate(self) -> float:
        """Probability with which a step draws a record."""
        return self.batch / self.records

    def epsilon_after(self, steps: int, *, delta: float | None = None) -> float:
        """ε of so many steps, at the plan's δ or another."""
        return epsilon_of_steps(
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=steps,
            delta=self.delta if delta is None else delta,
        )


class Spent(Strict):
    """What the steps so far have spent, as a bundle tells it.

    Attributes:
        epsilon: of the training set, at `delta`.
        delta: of the plan.
        noise_multiplier: of the plan.
        steps: taken.
        adjacency: what neighbouring training sets differ in.
        sampling: `poisson` where every batch was drawn here; `stated` where the caller brought some, and ε holds
            if they were drawn so too.
        noise: `secret`, or `seeded`: other trainings may share it, so ε holds for none.
        accountant: what computed ε.
    """

    epsilon: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    noise_multiplier: float = Field(gt=0)
    steps: int = Field(ge=0)
    adjacency: Literal["add or remove one record"] = "add or remove one record"
    sampling: Literal["poisson", "stated"] = "poisson"
    noise: Literal["secret", "seeded"] = "secret"
    accountant: Literal["opacus"] = "opacus"

    @classmethod
    def of(cls, plan: DpSgdPlan, *, steps: int, stated: bool, seeded: bool) -> Self:
        """After `steps` steps of a plan.

        Raises:
            MethodError: opacus is not installed.
        """
        return cls(
            epsilon=plan.epsilon_after(steps),
            delta=plan.delta,
            noise_multiplier=plan.noise_multiplier,
            steps=steps,
            sampling="stated" if stated else "poisson",
            noise="seeded" if seeded else "secret",
        )

    def check_plan(self, plan: DpSgdPlan) -> None:
        """Refuse what the plan contradicts.

        Raises:
            BundleError: naming it.
        """
        for name in ("delta", "noise_multiplier"):
            if getattr(self, name) != getattr(plan, name):
                raise BundleError(
                    f"the manifest states {name} {getattr(self, name):g}, and its plan {getattr(plan, name):g}; "
                    "convert the model again"
                )
        if self.steps > plan.steps:
            raise BundleError(
                f"the manifest states {self.steps} steps of a plan of {plan.steps}; convert the model again"
            )

    def checked_epsilon(self, plan: DpSgdPlan) -> tuple[float, bool]:
        """The larger one of the stated ε and the one that the steps spend, and whether that could be computed here.

        Raises:
            BundleError: the stated one is below.
        """
        try:
            computed = plan.epsilon_after(self.steps)
        except MethodError:
            return self.epsilon, False
        if self.epsilon < _BELOW * computed - _ABOUT:
            raise BundleError(
                f"the manifest states epsilon {self.epsilon:.4g}, and its {self.steps} steps spend {computed:.4g}; "
                "convert and train the model again"
            )
        return max(self.epsilon, computed), True
