"""The manifest of a bundle: what both sides must agree on."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from delta.config import Strict, canonical_hash
from delta.release.config import InputSpec, ReleaseConfig
from delta.transport.base import Binding

__all__ = ["SCHEMA_VERSION", "Architecture", "Manifest", "PrivateFacts"]

SCHEMA_VERSION = 1


class Architecture(Strict):
    """How the whole model is built, so that the cloud can rebuild its part without unpickling anything.

    Attributes:
        target: import path `package.module:callable` that returns the whole `nn.Module`. Ours start with
            `delta.models`; another needs the server operator's leave.
        arguments: its keyword arguments, plain JSON.
        split_at: name of the first module that runs in the cloud; empty where the method does not split.
    """

    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    arguments: dict[str, Any] = Field(default_factory=dict)
    split_at: str = ""


class Manifest(Strict):
    """What a bundle is. The cloud gets this and the cloud weights, nothing else.

    Attributes:
        schema_version: of this file.
        name: under which the cloud serves the model.
        method: registry name of the method.
        input: preprocessing and shape of a record.
        class_names: one a class, in label order.
        architecture: of the whole model.
        cloud_architecture: of the cloud model where it is no part of the whole one, as for shuffled releases; left out
            of the JSON where it is.
        release: the release configuration; none for methods without one.
        settings: what else the method fixes, plain JSON, checked by the method.
        logit_bound: B: the cloud's logits are clipped to [−B, B].
        labels: what the cloud learns of training labels.
        label_epsilon: of `randomized-response`, a label.
        lineage: how the bundle came about: seeds, data set, versions.
        release_hash: of `release`; empty without one.
        cloud_weights_hash: SHA-256 of `cloud.safetensors`.
        cloud_hash: names the cloud part: over architecture, settings, classes, release shape and weights.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    method: str
    input: InputSpec
    class_names: tuple[str, ...] = Field(min_length=2)
    architecture: Architecture
    cloud_architecture: Architecture | None = None
    release: ReleaseConfig | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    logit_bound: float = Field(gt=0)
    labels: Literal["none", "disclosed", "randomized-response"] = "disclosed"
    label_epsilon: float | None = Field(default=None, gt=0)
    lineage: dict[str, str] = Field(default_factory=dict)
    release_hash: str = ""
    cloud_weights_hash: str
    cloud_hash: str

    @model_validator(mode="after")
    def _hashes_agree(self) -> Self:
        expected = self.release.release_hash if self.release else ""
        if self.release_hash != expected:
            raise ValueError("release_hash does not match the release configuration; export the bundle again")
        if self.cloud_hash != self.computed_cloud_hash():
            raise ValueError("cloud_hash does not match the cloud part; export the bundle again")
        return self

    @model_serializer(mode="wrap")
    def _without_what_few_have(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Manifests from before there were layouts read and write as they did."""
        value: dict[str, Any] = handler(self)
        if self.cloud_architecture is None:
            value.pop("cloud_architecture", None)
        return value

    @property
    def architecture_in_cloud(self) -> Architecture:
        """How the cloud builds its model."""
        return self.cloud_architecture or self.architecture

    def computed_cloud_hash(self) -> str:
        """The hash that names the cloud part."""
        release, own = self.release, self.cloud_architecture
        shuffled = release is not None and release.layout.kind == "shuffled"
        return canonical_hash(
            {
                "schema_version": self.schema_version,
                "method": self.method,
                "architecture": self.architecture.model_dump(mode="json"),
                "settings": self.settings,
                "classes": len(self.class_names),
                "message": list(release.message.shape) if release else None,
                "weights": self.cloud_weights_hash,
                **({} if own is None else {"cloud_architecture": own.model_dump(mode="json")}),
                **({"layout": release.layout.model_dump(mode="json")} if release and shuffled else {}),
            }
        )

    @classmethod
    def sealed(cls, **fields: Any) -> Self:  # noqa: ANN401
        """A manifest of the given fields, its `release_hash` and `cloud_hash` computed.

        Raises:
            ConfigError: one line with every fault.
        """
        release: ReleaseConfig | None = fields.get("release")
        draft = cls.model_construct(
            **fields, release_hash=release.release_hash if release else "", cloud_hash=""
        )
        return cls.parse({**draft.model_dump(), "cloud_hash": draft.computed_cloud_hash()}, what="manifest")

    def resealed(self, **changes: Any) -> Self:  # noqa: ANN401
        """The same with other fields, its hashes computed anew.

        Raises:
            ConfigError: one line with every fault.
        """
        hashes = ("release_hash", "cloud_hash")
        fields = {name: getattr(self, name) for name in type(self).model_fields if name not in hashes}
        return self.sealed(**{**fields, **changes})

    @property
    def binding(self) -> Binding:
        """What a session with a cloud of this bundle fixes."""
        return Binding(
            model=self.name,
            cloud_hash=self.cloud_hash,
            release_hash=self.release_hash,
            mechanism=self.release.mechanism if self.release else "",
        )


class PrivateFacts(Strict):
    """`private.json`: what only the private side may read.

    Attributes:
        fusion: how z_main and z_cloud are combined.
        alpha: weight of the cloud's logits in `calibrated` fusion.
        alpha_max: the limit within which α was fitted.
        main: how the main model is built: the arguments of `delta.models.main_model.build_main`.
        backbone: `model`: the layers before the split point; `fixed`: a data-independent stem.
        weights_hash: SHA-256 of `private.safetensors`.
        private_macs: backbone, decomposition, release and main model, per record.
        cloud_macs: of the cloud model, per record.
        peak_private_bytes: peak of live private tensors for one record.
        figures: accuracies measured when the bundle was made, in percent.
    """

    fusion: Literal["sum", "calibrated"]
    alpha: float = Field(ge=0)
    alpha_max: float = Field(gt=0)
    main: dict[str, Any]
    backbone: Literal["model", "fixed"] = "model"
    weights_hash: str
    private_macs: int = Field(ge=0)
    cloud_macs: int = Field(ge=0)
    peak_private_bytes: int = Field(ge=0)
    figures: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def without_fusion(
        cls,
        *,
        weights_hash: str,
        private_macs: int,
        cloud_macs: int,
        peak_private_bytes: int,
        **fields: Any,  # noqa: ANN401
    ) -> Self:
        """The facts of a method that fuses nothing: the cloud's logits are the answer, or there are none."""
        fusion = {"fusion": "sum", "alpha": 1.0, "alpha_max": 1.0, "main": {}}
        counts = {
            "private_macs": private_macs,
            "cloud_macs": cloud_macs,
            "peak_private_bytes": peak_private_bytes,
        }
        return cls(**{**fusion, **counts, "weights_hash": weights_hash, **fields})
