"""Delta's private modules: backbone, decomposition, message map and main model, saved and loaded as one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.bundle.manifest import Manifest, PrivateFacts
from delta.bundle.store import Bundle
from delta.decomposition.decomposer import Decomposer
from delta.errors import BundleError
from delta.models.fixed_stem import FixedStem
from delta.models.main_model import build_main
from delta.models.splitting import split
from delta.models.targets import build_target
from delta.release.config import ReleaseConfig
from delta.release.message import MessageMap

__all__ = ["PrivateParts", "build_backbone", "build_private_parts", "load_private_parts"]

_PREFIXES = ("backbone", "decomposer", "message", "main")


@dataclass(frozen=True)
class PrivateParts:
    """The modules of the private side, in the order in which a record passes them."""

    backbone: nn.Module
    decomposer: Decomposer
    message: MessageMap
    main: nn.Module

    def eval(self) -> PrivateParts:
        """All of them in eval mode and frozen: what a release needs (no batch statistics)."""
        for module in (self.backbone, self.decomposer, self.message, self.main):
            module.eval().requires_grad_(False)
        return self

    def to(self, device: torch.device) -> PrivateParts:
        """All of them on a device."""
        for module in (self.backbone, self.decomposer, self.message, self.main):
            module.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """All weights and buffers by prefixed name."""
        modules = (self.backbone, self.decomposer, self.message, self.main)
        return {
            f"{prefix}.{name}": tensor
            for prefix, module in zip(_PREFIXES, modules, strict=True)
            for name, tensor in module.state_dict().items()
        }

    def load(self, tensors: dict[str, Tensor]) -> PrivateParts:
        """Load what `tensors` returned.

        Raises:
            BundleError: names or shapes differ.
        """
        modules = (self.backbone, self.decomposer, self.message, self.main)
        for prefix, module in zip(_PREFIXES, modules, strict=True):
            own = {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
            try:
                module.load_state_dict(own)
            except RuntimeError:
                raise BundleError(
                    f"the private weights of {prefix!r} do not fit the manifest; train the bundle again"
                ) from None
        return self


def build_backbone(manifest: Manifest, facts: PrivateFacts, *, allowed: Collection[str] = ()) -> nn.Module:
    """The backbone φ that a bundle declares, without its weights.

    Raises:
        ModelError: the manifest names an import target that is neither ours nor allowed (I5).
    """
    if facts.backbone == "fixed":
        channels, height, _ = manifest.input.shape
        ir_shape = _release(manifest).ir_shape
        return FixedStem(in_channels=channels, ir_shape=ir_shape, stride=height // ir_shape[1])
    architecture = manifest.architecture
    model = build_target(architecture.target, architecture.arguments, allowed=allowed)
    return split(model, at=architecture.split_at, example=torch.zeros(2, *manifest.input.shape)).backbone


def build_private_parts(
    manifest: Manifest, facts: PrivateFacts, *, allowed: Collection[str] = ()
) -> PrivateParts:
    """All private modules, without their weights."""
    release = _release(manifest)
    channels, height, width = release.ir_shape
    decomposer = Decomposer(
        channels=channels,
        height=height,
        width=width,
        rank=release.basis.rank,
        block=release.crop.block,
        keep=release.crop.keep,
        kind=release.basis.kind,
        algorithm=release.basis.algorithm,
    )
    message = MessageMap(
        release.message.map,
        channels=release.stream_shape[0],
        k=release.message.shape[0],
        stride=release.message_stride,
    )
    return PrivateParts(build_backbone(manifest, facts, allowed=allowed), decomposer, message, _main(facts))


def _main(facts: PrivateFacts) -> nn.Module:
    try:
        return build_main(**facts.main)
    except TypeError:
        raise BundleError(
            f"private.json names settings of a main model that this Delta lacks ({', '.join(sorted(facts.main))}); "
            "train the bundle again"
        ) from None


def load_private_parts(bundle: Bundle, *, allowed: Collection[str] = ()) -> PrivateParts:
    """The private modules of a bundle with their weights, frozen, in eval mode."""
    return build_private_parts(bundle.manifest, bundle.facts, allowed=allowed).load(bundle.private).eval()


def _release(manifest: Manifest) -> ReleaseConfig:
    if manifest.release is None:
        raise BundleError(
            "method 'delta' needs a release configuration in the manifest; train the bundle again"
        )
    return manifest.release
