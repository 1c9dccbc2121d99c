"""Whether the modules at hand are the ones that a release configuration names."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping

from torch import Tensor, nn

from delta.decomposition.decomposer import Decomposer
from delta.errors import ConfigError
from delta.release.config import ReleaseConfig
from delta.release.ids import length_prefixed, record_digest
from delta.release.message import MessageMap

__all__ = ["check_components", "check_per_record", "component_hash", "computation_hash"]


def component_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, dtypes, shapes and bytes; the order of the names does not matter."""
    found = hashlib.sha256(b"delta/component/v1")
    for name in sorted(tensors):
        found.update(length_prefixed(name, record_digest(tensors[name])))
    return found.hexdigest()


def computation_hash(module: nn.Module) -> str:
    """SHA-256 in hex over what a module computes: its layers with their settings, traced code and all tensors.

    Weights alone would not do: two backbones with equal weights and another activation would share their noise.
    The source of a user's own layers counts too. Another PyTorch may print a layer otherwise: the hash then
    differs, and the bundle is refused rather than its noise used twice.
    """
    text = [repr(module), str(getattr(module, "code", ""))]
    for name, part in module.named_modules():
        home = type(part).__module__.partition(".")[0]
        if home not in ("torch", "delta"):
            text.append(f"{name}:{_source_of(type(part))}")
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return hashlib.sha256(length_prefixed("delta/computation/v1", component_hash(tensors), *text)).hexdigest()


def _source_of(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return cls.__qualname__


def check_components(
    config: ReleaseConfig, *, backbone: nn.Module, decomposer: Decomposer, message: MessageMap
) -> None:
    """Refuse modules whose sizes or weights are not those of the configuration.

    Raises:
        ConfigError: naming the first that differs.
    """
    stream = decomposer.ir_shape if config.offload == "residual" else decomposer.principal_shape
    settings: list[tuple[str, object, object]] = [
        ("IR shape", config.ir_shape, decomposer.ir_shape),
        ("basis", config.basis.kind, decomposer.kind),
        ("rank", config.basis.rank, decomposer.rank),
        ("crop", (config.crop.block, config.crop.keep), (decomposer.block, decomposer.keep)),
        ("message map", config.message.map, message.kind),
        ("channels of the offloaded stream", stream[0], message.channels),
        ("message shape", config.message.shape, message.shape_of(stream)),
        ("backbone", config.backbone.hash, computation_hash(backbone)),
        ("weights of the basis", config.basis.component.hash, component_hash(decomposer.state_dict())),
        ("weights of the message map", config.message.component.hash, component_hash(message.state_dict())),
    ]
    if config.basis.kind == "svd":
        settings.append(("svd algorithm", config.basis.algorithm, decomposer.algorithm))
    for name, expected, found in settings:
        if expected != found:
            raise ConfigError(
                f"{name}: the release configuration says {_short(expected)}, the module has {_short(found)}; "
                "load the modules of this bundle, or train it again"
            )


def check_per_record(backbone: nn.Module) -> None:
    """Refuse a backbone in which records see each other: a release would depend on its batch.

    Raises:
        ConfigError: naming the module.
    """
    for name, module in backbone.named_modules():
        where = f"backbone module {name or type(module).__name__!r}"
        if module.training:
            raise ConfigError(
                f"{where} is in training mode, where records may see each other; call eval() on it"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ConfigError(
                f"{where} normalises by its batch even in eval mode; give it running statistics"
            )


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
