"""The models that a server hosts: cloud halves of bundles, with what their sessions are bound to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from delta.bundle.manifest import Manifest
from delta.bundle.store import CloudPart, load_cloud_part
from delta.device import device_of
from delta.errors import BundleError, CloudMismatchError, ConfigError, RequestError
from delta.methods.registry import load_plugin, method_class
from delta.methods.schema import PREDICT, CloudHalf, is_predict
from delta.transport.base import Binding
from delta.wire.services import ModelInfo
from delta.wire.session import check_binding, encode_binding
from delta.wire.tensors import encode_schema
from delta_server.config import ServerConfig

__all__ = ["HostedModel", "ModelStore", "host_part"]

_SLACK = 1024  # bytes of a message beside its records: ids, counts, the handshake's names and hashes
_CHUNK_BYTES = 2**20  # packed bits in one message, where that is not below _MIN_CHUNK records
_MIN_CHUNK, _MAX_CHUNK = 64, 4096


@dataclass(frozen=True, eq=False)
class HostedModel:
    """One model and the limits that follow from its manifest.

    Attributes:
        manifest: of the bundle.
        half: its operations.
        binding: what a session must be bound to.
        payload_bytes: packed bytes a record; 0 where the model does not serve `Predict`.
        classes: logits a record; 0 likewise.
        pad_bits: low bits of a record's last byte that must be zero.
        max_records: most records in one message of `PredictStream`.
        max_message_bytes: largest message that the model needs.
    """

    manifest: Manifest
    half: CloudHalf
    binding: Binding
    payload_bytes: int
    classes: int
    pad_bits: int
    max_records: int
    max_message_bytes: int

    @property
    def predict_bytes(self) -> int:
        """Largest message of `Predict` and `PredictStream`."""
        return self.max_records * self.payload_bytes + _SLACK

    def require_predict(self, payload_bytes: int) -> None:
        """Refuse a prediction session that the model cannot serve.

        Raises:
            RequestError: the model has no typed prediction.
            CloudMismatchError: the record's payload has another size.
        """
        if not self.payload_bytes:
            raise RequestError(
                f"model {self.binding.model!r} does not serve Predict; call {sorted(self.half.operations)} "
                "over Exchange"
            )
        if payload_bytes != self.payload_bytes:
            raise CloudMismatchError(
                f"payload differs: the client sends {payload_bytes} bytes a record, model "
                f"{self.binding.model!r} takes {self.payload_bytes}; use the bundle of that cloud part"
            )

    def info(self) -> ModelInfo:
        """The entry in the catalog."""
        return ModelInfo(
            binding=encode_binding(self.binding),
            method=self.manifest.method,
            operations=[encode_schema(name, op) for name, op in self.half.operations.items()],
            payload_bytes=self.payload_bytes,
            classes=self.classes,
            max_records=self.max_records,
            max_message_bytes=self.max_message_bytes,
        )


class ModelStore:
    """The hosted models by name."""

    def __init__(self, models: Iterable[HostedModel]) -> None:
        self._models: dict[str, HostedModel] = {}
        for model in models:
            name = model.binding.model
            if name in self._models:
                raise ConfigError(f"two bundles are named {name!r}; give each its own name")
            self._models[name] = model

    @classmethod
    def load(cls, config: ServerConfig) -> ModelStore:
        """Import the plug-ins and load the cloud part of every bundle.

        Raises:
            BundleError: a bundle is damaged, or names a target that is not allowed.
            UnknownMethodError: no plug-in or method of that name.
            ConfigError: two bundles have one name, or the device is not there.
        """
        device_of(config.device)
        for plugin in config.plugins:
            load_plugin(plugin)
        return cls(_load(path, config) for path in config.bundles)

    @property
    def models(self) -> Mapping[str, HostedModel]:
        """All of them by name."""
        return self._models

    def get(self, name: str) -> HostedModel:
        """A model by name; an empty name stands for the only one.

        Raises:
            CloudMismatchError: no such model.
        """
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        try:
            return self._models[name]
        except KeyError:
            names = ", ".join(sorted(self._models)) or "none"
            raise CloudMismatchError(f"model {name[:64]!r} is not served here; there are: {names}") from None

    def add(self, model: HostedModel) -> None:
        """Host one more, or another in the place of one of the same name; those in use live on."""
        self._models[model.binding.model] = model

    def remove(self, name: str) -> None:
        """Host a model no longer; those who use it now go on."""
        self._models.pop(name, None)

    def bind(self, binding: Binding) -> HostedModel:
        """The model that a client asks for, if it is the same on both sides.

        Raises:
            CloudMismatchError: no such model, or another cloud part, release configuration or mechanism.
        """
        model = self.get(binding.model)
        check_binding(binding, model.binding)
        return model


def host_part(
    part: CloudPart, half: CloudHalf, *, exchange_message_bytes: int, queue_records: int
) -> HostedModel:
    """Derive a model's limits from its manifest, its operations and the server's own bounds."""
    operation = half.operations.get(PREDICT)
    payload_bytes = classes = pad_bits = max_records = 0
    if operation is not None and is_predict(operation):
        payload_bytes = int(operation.inputs["bits"].shape[1])
        classes = int(operation.outputs["logits"].shape[1])
        max_records = max(_MIN_CHUNK, min(_MAX_CHUNK, _CHUNK_BYTES // payload_bytes))
        max_records = min(max_records, queue_records)  # what could never be admitted need not be sent
        release = part.manifest.release
        if release is not None and release.payload_bytes == payload_bytes:
            pad_bits = 8 * payload_bytes - release.bits
    only_predict = bool(payload_bytes) and set(half.operations) == {PREDICT}
    predict_bytes = max_records * payload_bytes + _SLACK
    return HostedModel(
        manifest=part.manifest,
        half=half,
        binding=part.manifest.binding,
        payload_bytes=payload_bytes,
        classes=classes,
        pad_bits=pad_bits,
        max_records=max_records,
        max_message_bytes=predict_bytes if only_predict else max(predict_bytes, exchange_message_bytes),
    )


def _load(path: Path, config: ServerConfig) -> HostedModel:
    part = load_cloud_part(path)
    method = method_class(part.manifest.method)
    half = method.cloud_half(part, device=torch.device(config.device), allowed=config.allow)
    if not half.operations:
        raise BundleError(
            f"bundle {path}: method {part.manifest.method!r} runs on the private side alone; there is nothing to "
            "serve"
        )
    return host_part(
        part, half, exchange_message_bytes=config.exchange_message_bytes, queue_records=config.queue_records
    )
