"""Delta's cloud half: packed bits in, logits out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from delta.bundle.manifest import Architecture
from delta.bundle.store import CloudPart
from delta.errors import BundleError, ModelError
from delta.methods.schema import PREDICT, Operation, TensorSpec
from delta.models.bag_model import BagOfPatches
from delta.models.cloud_model import CloudModel
from delta.models.splitting import split
from delta.models.targets import build_target
from delta.release.config import ReleaseConfig

__all__ = ["DeltaCloud", "build_cloud_model", "load_cloud_model"]


def build_cloud_model(
    architecture: Architecture, release: ReleaseConfig, *, allowed: Collection[str] = ()
) -> CloudModel:
    """The cloud model that a manifest declares, freshly initialised.

    Args:
        architecture: of the whole model, and where it is split; of a shuffled release, our bag of patches.
        release: gives the shapes of record, IR and message.
        allowed: import targets outside `delta.models` that may be called.

    Raises:
        ModelError: the target is not allowed, does not build, or does not read this release.
    """
    if release.layout.patch is not None:
        return _bag_model(architecture, release)
    model = build_target(architecture.target, architecture.arguments, allowed=allowed)
    parts = split(model, at=architecture.split_at, example=torch.zeros(2, *release.input.shape))
    return CloudModel(parts.body, message_shape=release.message.shape, ir_shape=release.ir_shape)


def _bag_model(architecture: Architecture, release: ReleaseConfig) -> CloudModel:
    """No user's code has a part in it: only ours reads bags."""
    k, patch = release.message.shape[0], release.layout.patch
    bag = build_target(architecture.target, architecture.arguments)
    if not isinstance(bag, BagOfPatches) or (bag.channels, bag.patch) != (k, patch):
        raise ModelError(
            f"a release in shuffled patches of {k}×{patch}×{patch} is read by delta.models:bag_of_patches with these "
            f"channels and patch, not by {architecture.target} as it was set; declare that one"
        )
    return CloudModel(
        bag, message_shape=release.message.shape, ir_shape=release.message.shape, patch=bag.patch
    )


def load_cloud_model(part: CloudPart, *, allowed: Collection[str] = ()) -> CloudModel:
    """The cloud model with its weights, in eval mode.

    Raises:
        BundleError: the weights do not fit the declared architecture, or no release is declared.
    """
    release = part.manifest.release
    if release is None:
        raise BundleError(
            "method 'delta' needs a release configuration in the manifest; train the bundle again"
        )
    architecture = part.manifest.architecture_in_cloud
    model = build_cloud_model(architecture, release, allowed=allowed)
    try:
        model.load_state_dict(part.cloud)
    except RuntimeError:
        raise BundleError(
            f"the cloud weights do not fit {architecture.target}; export the bundle again with "
            "the code that made it"
        ) from None
    return model.eval()


class DeltaCloud:
    """Serves one cloud model: `predict: bits uint8[n, B] → logits float32[n, classes]`."""

    def __init__(self, model: CloudModel, *, payload_bytes: int, classes: int, device: torch.device) -> None:
        self._model = model.to(device).eval()
        self._device = device
        self._operations = {
            PREDICT: Operation(
                inputs={"bits": TensorSpec(torch.uint8, ("n", payload_bytes))},
                outputs={"logits": TensorSpec(torch.float32, ("n", classes))},
                run=self._predict,
                batchable=True,
            )
        }

    @property
    def operations(self) -> Mapping[str, Operation]:
        """The one operation."""
        return self._operations

    @torch.inference_mode()
    def _predict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits: Tensor = self._model(tensors["bits"].to(self._device))
        return {"logits": logits.float().cpu()}
