"""What a user decides about a training run."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from delta.config import Strict
from delta.errors import ConfigError
from delta.privacy.budget import BudgetConfig, budget_of
from delta.privacy.gaussian import sigma_for
from delta.privacy.ledger import UNLIMITED, Budget
from delta.release.config import Bounding, LayoutConfig, Provenance
from delta.release.message import FixedKind

__all__ = [
    "Augmentation",
    "BagConfig",
    "FitConfig",
    "LabelConfig",
    "LearnedMessage",
    "MainConfig",
    "NoiseConfig",
    "Precision",
    "TrainConfig",
]

Augmentation = Literal["none", "shift", "shift+flip"]
"""Shifts by up to 4 pixels, and mirrors; of shuffled bits mirrors alone, see `delta.training.bags`."""

Precision = Literal["float32", "bfloat16"]
"""Of a fit's arithmetic: `bfloat16` is autocast, weights and optimiser stay in float32."""


class NoiseConfig(Strict):
    """An honest per-release (ε, δ)."""

    epsilon: float = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)


class LabelConfig(Strict):
    """How training labels reach the cloud (DESIGN, privacy 7).

    Attributes:
        kind: `disclosed`, or `randomized-response`: each label once through k-ary randomized response.
        epsilon: of randomized response, a label; above 30 hardly a label in 10¹² would differ: say `disclosed`.
    """

    kind: Literal["disclosed", "randomized-response"] = "disclosed"
    epsilon: float | None = Field(default=None, gt=0, le=30)

    @model_validator(mode="before")
    @classmethod
    def _a_word_will_do(cls, value: Any) -> Any:  # noqa: ANN401
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_randomized_response_has_an_epsilon(self) -> Self:
        if (self.kind == "randomized-response") != (self.epsilon is not None):
            raise ValueError("kind 'randomized-response' needs epsilon, and 'disclosed' takes none")
        return self


class FitConfig(Strict):
    """One supervised fit: AdamW on a one-cycle schedule."""

    epochs: int = Field(ge=1, le=100_000)
    batch: int = Field(default=64, ge=2, le=1_000_000)
    learning_rate: float = Field(default=4e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)


class MainConfig(Strict):
    """The main model: the authors' layout, or the largest light one within a MAC budget.

    Without a budget, `light` takes a hundredth of the whole model's MACs.

    Attributes:
        layout: `authors` or `light`.
        max_macs: budget of a light main model alone, MACs a record.
        private_macs: instead, budget of the whole private path: backbone, decomposition, release and main model.
        distil: whether the whole model is its teacher.
    """

    layout: Literal["authors", "light"] = "light"
    max_macs: int | None = Field(default=None, ge=1)
    private_macs: int | None = Field(default=None, ge=1)
    distil: bool = True

    @model_validator(mode="after")
    def _only_light_has_a_budget(self) -> Self:
        if self.layout == "authors" and (self.max_macs or self.private_macs) is not None:
            raise ValueError("layout 'authors' takes no budget in MACs: its size follows from the rank")
        if self.max_macs is not None and self.private_macs is not None:
            raise ValueError(
                "give max_macs of the main model or private_macs of the whole path, null for the other"
            )
        return self


class LearnedMessage(Strict):
    """A message map that is fitted on the private training records, before anything is released.

    Attributes:
        map: `learned`.
        k: channels of the message.
        stride: s; the map reads squares of s×s values, and the message is s times narrower than the stream.
        adversary: λ, the weight of a decoder's failure to draw the image; 0 fits for the classes alone.
        epochs: of the fit of map, classifier and decoder together.
        batch: records a step.
        learning_rate: highest of the one-cycle schedule.
        width: channels of the decoder's first level.
        distil: whether the whole model is the classifier's teacher.
    """

    map: Literal["learned"]
    k: int = Field(default=4, ge=1)
    stride: int = Field(default=1, ge=1)
    adversary: float = Field(default=1.0, ge=0)
    epochs: int = Field(default=10, ge=1, le=100_000)
    batch: int = Field(default=64, ge=2, le=1_000_000)
    learning_rate: float = Field(default=4e-3, gt=0)
    width: int = Field(default=16, ge=4, le=1024)
    distil: bool = True

    @property
    def fit(self) -> FitConfig:
        """Schedule of the fit. No weight decay: a map's scale is of no effect."""
        return FitConfig(
            epochs=self.epochs, batch=self.batch, learning_rate=self.learning_rate, weight_decay=0.0
        )


class BagConfig(Strict):
    """Size of the cloud model of a shuffled release; see `delta.models.bag_model`.

    Attributes:
        width: channels of the first convolutions.
        layers: in which the patches see each other.
    """

    width: int = Field(default=64, ge=1, le=512)
    layers: int = Field(default=2, ge=1, le=16)


class TrainConfig(Strict):
    """A training run of Delta. `noise` has no default: give an ε, or say `none`.

    Attributes:
        noise: `none` (empirical obfuscation, no claim) or an ε and δ a release.
        seed: of every random choice that is not a secret.
        name: of the bundle.
        rank: r of the channel basis; none takes 8, or all channels of a narrower IR.
        basis: `pca` (one for all, on seeded synthetic images) or `svd` a record.
        algorithm: of `svd`: `exact` or `approximate`.
        block: M of the spatial basis; none takes the largest of 16, 14, 8, 7, 4, 2 that divides the IR.
        keep: m of the spatial basis; none takes half of the block.
        offload: the stream that feeds the release.
        message: message map, or a `LearnedMessage`; none is the channel mean for `residual`, all channels for
            `principal`.
        channels: k of a projection.
        layout: `kept`, or `patch` and `mirror`: the bits leave as a bag of patches, which a cloud model of its own
            reads.
        bag: size of that cloud model.
        bounding: how a message's norm is bounded; the default normalises to C = 1, and nothing is fitted.
        backbone: `model`: the layers before the split point; `fixed`: a data-independent stem.
        tune_backbone: whether M_main's fit trains a copy of the backbone with it, as the paper does; frozen before
            the first release like any other.
        backbone_provenance: of a model that comes trained (`whole: null`): where its weights are from.
        whole: fit of the whole private model, also the teacher; none if it comes trained.
        main: main model and its size.
        main_fit: fit of the main model (and of nothing else: the backbone is frozen).
        cloud_fit: fit of the cloud model on the stored releases.
        cloud_augment: shifts and mirrors of the stored bits, in the cloud.
        mode: `one-shot`: each record is released once, and the cloud trains by itself; `interactive`: the paper's
            exchange of a batch's bits for its logits, M_main learning on the merged loss.
        merged_learning_rate: of M_main in interactive mode.
        labels: how training labels reach the cloud.
        views: releases of each training record; each further one is of an augmented image and a release of its own.
        fusion: `calibrated` or the paper's `sum`.
        alpha_max: largest α that calibration may give.
        logit_bound: B.
        held_out: share of the training records kept from both models, on which α is fitted.
        augment: shifts and mirrors (`flip`) of the private models' training images, and of further views.
        orthogonality: weight of the penalty on convolutions that are not orthogonal, in stage 1.
        precision: of every fit's arithmetic.
        budget: the largest μ, or (ε, δ), that any one subject's releases may add up to; `noise: none` needs
            `unlimited`.
        device: `cpu` or `cuda`.
    """

    noise: Literal["none"] | NoiseConfig
    seed: int = Field(default=0, ge=0, le=2**62)
    name: str = Field(default="delta", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    rank: int | None = Field(default=None, ge=1)
    basis: Literal["pca", "svd"] = "pca"
    algorithm: Literal["exact", "approximate"] = "exact"
    block: int | None = Field(default=None, ge=1)
    keep: int | None = Field(default=None, ge=1)
    offload: Literal["residual", "principal"] = "residual"
    message: FixedKind | LearnedMessage | None = None
    channels: int | None = Field(default=None, ge=1)
    layout: LayoutConfig = LayoutConfig()
    bag: BagConfig = BagConfig()
    bounding: Bounding = Bounding()
    backbone: Literal["model", "fixed"] = "model"
    tune_backbone: bool = False
    backbone_provenance: Provenance | None = None
    whole: FitConfig | None = FitConfig(epochs=8)
    main: MainConfig = MainConfig()
    main_fit: FitConfig = FitConfig(epochs=10)
    cloud_fit: FitConfig = FitConfig(epochs=8)
    cloud_augment: Augmentation = "none"
    mode: Literal["one-shot", "interactive"] = "one-shot"
    merged_learning_rate: float = Field(default=1e-3, gt=0)
    labels: LabelConfig = LabelConfig()
    views: int = Field(default=1, ge=1, le=64)
    fusion: Literal["calibrated", "sum"] = "calibrated"
    alpha_max: float = Field(default=4.0, gt=0)
    logit_bound: float = Field(default=20.0, gt=0)
    held_out: float = Field(default=0.1, gt=0, lt=0.5)
    augment: Augmentation = "none"
    orthogonality: float = Field(default=0.0, ge=0)
    precision: Precision = "float32"
    budget: Literal["unlimited"] | BudgetConfig = UNLIMITED
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")

    @field_validator("message", mode="before")
    @classmethod
    def _a_word_will_do(cls, value: Any) -> Any:  # noqa: ANN401
        if value == "learned":
            return {"map": "learned"}
        if isinstance(value, str) and value not in get_args(FixedKind):
            raise ValueError(f"unknown message map; use {', '.join(get_args(FixedKind))} or learned")
        if isinstance(value, dict) and value.get("map") != "learned":
            if set(value) == {"map"}:  # so that `message.map` can be varied beside `message`
                return value["map"]
            raise ValueError("only map: learned has settings of its own; k of a projection is `channels`")
        return value

    @model_validator(mode="after")
    def _only_a_projection_has_channels(self) -> Self:
        if (self.message == "projection") != (self.channels is not None):
            raise ValueError(
                "message 'projection' needs channels (k), and no other message map takes them; k of a learned one "
                "is message.k"
            )
        return self

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.noise == "none" and self.budget != UNLIMITED:
            raise ValueError(
                "noise 'none' spends without bound: it needs budget: unlimited, or give noise an epsilon"
            )
        if self.views > 1 and self.augment == "none":
            raise ValueError("views above 1 need augment: a second release of the same image adds nothing")
        if self.backbone_provenance is not None and (
            self.whole is not None or self.backbone == "fixed" or self.tune_backbone
        ):
            raise ValueError(
                "backbone_provenance is of a model that comes trained and stays as it is: it needs whole: null, "
                "backbone: model and tune_backbone: false"
            )
        if self.tune_backbone and (self.backbone == "fixed" or self.basis == "svd"):
            raise ValueError(
                "tune_backbone trains the layers before the split point through one basis for all: it needs "
                "backbone: model and basis: pca"
            )
        return self

    @classmethod
    def of(cls, settings: dict[str, Any]) -> TrainConfig:
        """Validate keyword settings.

        Raises:
            ConfigError: one line with every fault; a missing `noise` says what to choose from.
        """
        what = "training settings"
        if "noise" in settings:
            return cls.parse(settings, what=what)
        missing = f"{what}: noise is not set: say noise='none' (no privacy claim) or noise={{'epsilon': 8}}"
        try:
            cls.parse({**settings, "noise": "none"}, what=missing)
        except ConfigError as others:
            raise ConfigError(str(others).replace(f"{missing}: ", f"{missing}; ")) from None
        raise ConfigError(missing)

    @property
    def whole_settings(self) -> dict[str, Any]:
        """What the whole model's fit depends on, as plain JSON."""
        names = {"seed", "whole", "held_out", "augment", "orthogonality", "precision", "device"}
        return self.model_dump(mode="json", include=names)

    @property
    def private_settings(self) -> dict[str, Any]:
        """What stage 1 depends on: the release and the cloud's fit play no part in it."""
        names = {
            "rank",
            "basis",
            "algorithm",
            "block",
            "keep",
            "backbone",
            "tune_backbone",
            "main",
            "main_fit",
        }
        return {**self.whole_settings, **self.model_dump(mode="json", include=names)}

    def rank_of(self, channels: int) -> int:
        """The rank r for an IR of so many channels."""
        return min(8, channels) if self.rank is None else self.rank

    @property
    def subject_budget(self) -> Budget:
        """μ that any one subject's releases may add up to, or `unlimited`."""
        return UNLIMITED if self.budget == UNLIMITED else budget_of(self.budget)

    def sigma(self, *, clip_norm: float) -> float | None:
        """σ of the noise on a message of norm at most `clip_norm`; none for `noise: none`."""
        if self.noise == "none":
            return None
        return sigma_for(epsilon=self.noise.epsilon, delta=self.noise.delta, clip_norm=clip_norm)
