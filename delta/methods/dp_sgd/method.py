"""Trained with DP-SGD on the private side; the model may then be published, and answers in the cloud."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from delta.bundle.manifest import Manifest
from delta.bundle.store import Bundle, CloudPart
from delta.errors import BundleError, ConfigError, InputError
from delta.methods.asking import Call
from delta.methods.base import Cost, MethodFacts, RecordIds, StepResult
from delta.methods.dp_sgd.norms import with_group_norm
from delta.methods.dp_sgd.plan import DpSgdPlan, Spent
from delta.methods.dp_sgd.randomness import SecretNumbers
from delta.methods.dp_sgd.stepper import DpStepper
from delta.methods.dp_sgd.trainable import check_trainable
from delta.methods.records import checked_labels, checked_records
from delta.methods.registry import register_method
from delta.methods.remote import RemoteMethod, with_cloud_weights
from delta.methods.whole import WholeModel, allowed_targets, plain_bundle, rebuilt, refuse_settings
from delta.models.memory import peak_memory
from delta.models.targets import build_target

__all__ = ["DpSgd"]

_SETTINGS = (
    "epsilon",
    "noise_multiplier",
    "records",
    "steps",
    "batch",
    "delta",
    "max_grad_norm",
    "learning_rate",
    "momentum",
    "weights",
    "seed",
)
_LARGEST_VALUE = 1e12


@register_method
class DpSgd(RemoteMethod):
    """Training private and noisy, inference in the clear.

    Args:
        bundle: of `dp-sgd`.
        allow: import targets that the bundle may build here.
        device: where the private side trains.
        seed: of noise and sampling, for tests and one training a seed: two trainings under one seed share their
            noise, so a bundle of it claims nothing. None keeps the noise secret and new.
    """

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="dp-sgd",
        summary="trained privately with DP-SGD, then in the cloud: queries are sent as they are",
        keeps=frozenset({"I1", "I2", "I3"}),
        protects=("training data",),
        rests_on=("central DP",),
        trains=True,
        falls_back=False,
    )

    def __init__(
        self,
        bundle: Bundle,
        *,
        allow: Collection[str] = (),
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        super().__init__(bundle)
        self._dp_plan, spent = _declared(bundle.manifest)
        self._taken = spent.steps
        self._stated, self._seeded = spent.sampling == "stated", spent.noise == "seeded"
        self._allow, self._device, self._seed = tuple(allow), torch.device(device), seed
        self._module: nn.Module | None = None
        self._peak_bytes = 0

    @classmethod
    def claim(cls, manifest: Manifest) -> str:
        """(ε, δ) of the training set, and under which conditions; none where a seed made the noise.

        Raises:
            BundleError: the manifest contradicts itself, or its ε is below what its steps spend.
        """
        plan, spent = _declared(manifest)
        sent = "queries are sent as they are"
        if spent.steps == 0:
            return f"none: no step of DP-SGD was taken yet; {sent}"
        if spent.noise == "seeded":
            return (
                "none: a seed made the noise, which is for tests and one training a seed: trainings on different data "
                f"under one seed share their noise, and their difference shows the data; {sent}"
            )
        epsilon, recomputed = spent.checked_epsilon(plan)
        conditions = [
            "" if recomputed else "epsilon as stated: opacus is not here to compute it again",
            "if the batches were Poisson samples, as was stated" if spent.sampling == "stated" else "",
            "the weights that training began with not covered" if plan.weights == "given" else "",
        ]
        claimed = f"training data ({epsilon:.4g}, {spent.delta:.3g})-DP, central, {spent.adjacency}"
        return "; ".join([claimed, *filter(None, conditions), sent])

    @classmethod
    def bundle_of(
        cls,
        model: WholeModel,
        *,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        records: int | None = None,
        steps: int | None = None,
        batch: int = 64,
        delta: float = 1e-5,
        max_grad_norm: float = 1.0,
        learning_rate: float = 0.5,
        momentum: float = 0.9,
        weights: Literal["fresh", "given"] = "fresh",
        seed: int = 0,
        **settings: Any,  # noqa: ANN401
    ) -> Bundle:
        """The model with group norms, and a training plan with all its noise fixed.

        Args:
            model: the whole model.
            epsilon: that all steps together may spend; or
            noise_multiplier: noise over the clipping norm. There is no default for either.
            records: size of the training set.
            steps: in all.
            batch: records a step, on average.
            delta: at which ε is told.
            max_grad_norm: L2 norm to which each record's gradient is clipped.
            learning_rate: of SGD.
            momentum: of SGD.
            weights: `fresh` ones of a seed, or those `given` by the model: the claim does not cover records that
                these were fitted to.
            seed: of fresh weights.
            settings: there are no others.

        Raises:
            PrivacyParameterError: a number without a default is missing, or no noise keeps ε.
            ModelError: opacus cannot train the model.
            MethodError: opacus is not installed.
        """
        refuse_settings(cls.facts.name, settings, known=_SETTINGS)
        plan = DpSgdPlan.of(
            records=records,
            batch=batch,
            steps=steps,
            epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            delta=delta,
            max_grad_norm=max_grad_norm,
            learning_rate=learning_rate,
            momentum=momentum,
            weights=weights,
        )
        module = with_group_norm(_fresh(model, seed) if weights == "fresh" else copy.deepcopy(model.module))
        check_trainable(module, model.record)
        whole = replace(model, module=module.eval())
        return plain_bundle(
            whole,
            cls.facts.name,
            private={},
            cloud=module.state_dict(),
            private_macs=0,
            cloud_macs=whole.macs,
            peak_private_bytes=model.record.numel() * 4,
            settings=_settings(plan, Spent.of(plan, steps=0, stated=False, seeded=False)),
        )

    @classmethod
    def _build(cls, part: CloudPart | Bundle, allowed: Collection[str]) -> nn.Module:
        return rebuilt(part, part.cloud, allowed=allowed, adapt=with_group_norm)

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> Self:  # noqa: ANN401
        """Build the private half; options are `allow`, `device` and `seed`."""
        return cls(bundle, **options)

    def privacy_spent(self, *, delta: float | None = None) -> tuple[float, float]:
        """(ε, δ) of the training set after the steps so far, at the plan's δ or another.

        Central, add or remove one record; it holds if every batch was a Poisson sample of the plan's rate, as those
        of `fit` are.
        """
        at = self._dp_plan.delta if delta is None else delta
        return self._dp_plan.epsilon_after(self._taken, delta=at), at

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """One step of DP-SGD on a batch that the caller has drawn; nothing is sent.

        What it adds to ε is right if each of the plan's records was in the batch with probability batch/records,
        independently and once: shuffled batches of a fixed size are not. The bundle says that this was `stated`;
        `fit` draws such batches itself.

        Returns:
            The batch's mean loss, which is exact: no noise covers it.

        Raises:
            ConfigError: the plan's steps are done, or the loss is not finite.
            BundleError: the model is not allowed here.
        """
        x = checked_records(x, self._manifest.input.shape)
        y = checked_labels(y, records=len(x), classes=len(self._manifest.class_names))
        self._require_steps(1)
        stepper = self._stepper
        call = Call(None, deadline_s=self._deadline_s)
        loss = self._step(stepper, x, y) / len(x)
        self._stated = True
        return StepResult(loss, self._training_cost(call))

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        steps: int | None = None,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> list[float]:
        """Train on the whole training set, by Poisson samples drawn here.

        Args:
            x: all records `[records, *shape]`.
            y: their labels `[records]`.
            steps: how many; none takes all that the plan has left.
            progress: called as `(stage, steps done, steps in all)`.

        Returns:
            Mean loss of each step's batch, exact and for the owner alone; NaN for an empty one.

        Raises:
            ConfigError: the set has another size than the plan's, there are not so many steps left, or the loss is
                not finite.
            InputError: records or labels do not fit.
        """
        x = checked_records(x, self._manifest.input.shape)
        y = checked_labels(y, records=len(x), classes=len(self._manifest.class_names))
        if len(x) != self._dp_plan.records:
            raise ConfigError(
                f"the plan accounts for {self._dp_plan.records} training records, and there are {len(x)}; convert "
                f"the model with records={len(x)}"
            )
        total = self._dp_plan.steps - self._taken if steps is None else steps
        self._require_steps(total)
        stepper, losses = self._stepper, []
        for done in range(1, total + 1):
            drawn = self._numbers.poisson(len(x), rate=self._dp_plan.sample_rate)
            loss = self._step(stepper, x[drawn], y[drawn])
            losses.append(loss / len(drawn) if len(drawn) else float("nan"))
            progress("training with DP-SGD", done, total)
        return losses

    def trained(self) -> Bundle:
        """The bundle with the parameters as they are now, and what they have spent.

        Buffers are those that training began with: no noise covers what records may have left in them.
        """
        plan = self._dp_plan
        spent = Spent.of(plan, steps=self._taken, stated=self._stated, seeded=self._seeded)
        cloud = self._bundle.cloud
        if self._module is not None:
            learnt = self._module.named_parameters(remove_duplicate=False)
            cloud = {**cloud, **{name: t.detach().cpu().clone() for name, t in learnt}}
        return with_cloud_weights(self._bundle, cloud, settings=_settings(plan, spent))

    def _outbound(self, x: Tensor, ids: RecordIds | None) -> Tensor:
        """As they are (nothing protects a query), but for values whose squares a group norm cannot add up."""
        if float(x.abs().max()) > _LARGEST_VALUE:
            raise InputError(
                f"a record holds values beyond ±{_LARGEST_VALUE:g}; preprocess the records first"
            )
        return x

    def _step(self, stepper: DpStepper, x: Tensor, y: Tensor) -> float:
        """The sum of the records' losses. Counted only once taken: a step that fails publishes nothing."""
        loss = stepper.step(x, y)
        self._taken += 1
        self._seeded |= self._seed is not None
        return loss

    @property
    def _stepper(self) -> DpStepper:
        """Made on first use: whoever only asks needs neither model nor opacus."""
        if self._module is None:
            module = self._build(self._bundle, allowed_targets(self._bundle, self._allow))
            with torch.no_grad():
                self._peak_bytes = peak_memory(module, torch.zeros(1, *self._manifest.input.shape))
            self._module = module.to(self._device)
            self._numbers = SecretNumbers(self._seed, start=f"{self._manifest.cloud_hash} {self._taken}")
            self._made = DpStepper(self._module, self._dp_plan, self._numbers)
        return self._made

    def _require_steps(self, steps: int) -> None:
        left = self._dp_plan.steps - self._taken
        if not 0 < steps <= left:
            raise ConfigError(
                f"the plan has {left} of {self._dp_plan.steps} steps left, and {steps} are asked for; its noise is "
                "made for no more, so convert the model again with more steps"
            )

    def _training_cost(self, call: Call) -> Cost:
        """The whole model runs on the private side, and the cloud does nothing."""
        cost = call.cost(self._bundle.facts)
        peak = self._peak_bytes / 2**20
        return replace(cost, private_macs=cost.cloud_macs, cloud_macs=0, peak_private_mib=peak)


def _fresh(model: WholeModel, seed: int) -> nn.Module:
    target, arguments = model.architecture.target, model.architecture.arguments
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_target(target, arguments, allowed={target})


def _settings(plan: DpSgdPlan, spent: Spent) -> dict[str, Any]:
    return {"norm": "group", "dp_sgd": plan.model_dump(mode="json"), **spent.model_dump(mode="json")}


def _declared(manifest: Manifest) -> tuple[DpSgdPlan, Spent]:
    """Plan and spending of a manifest.

    Raises:
        BundleError: it declares no group norm, or none of them, or they contradict each other.
        ConfigError: they are not valid.
    """
    settings = dict(manifest.settings)
    if settings.pop("norm", None) != "group" or "dp_sgd" not in settings:
        raise BundleError("the manifest declares no training of method 'dp-sgd'; convert the model again")
    plan = DpSgdPlan.parse(settings.pop("dp_sgd"), what="manifest: dp_sgd")
    spent = Spent.parse(settings, what="manifest: settings")
    spent.check_plan(plan)
    return plan, spent
