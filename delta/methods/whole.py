"""A user's whole model, and what every method makes of it: a bundle, and the model built again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delta.bundle.manifest import Architecture, Manifest, PrivateFacts
from delta.bundle.store import Bundle, CloudPart, weights_hash
from delta.errors import BundleError, ConfigError, ModelError
from delta.models.macs import count_macs
from delta.models.memory import peak_memory
from delta.models.modes import evaluating, record_and_noise
from delta.models.targets import build_target, full_target, infer_target
from delta.release.components import check_per_record
from delta.release.config import InputSpec

__all__ = [
    "WholeModel",
    "allowed_targets",
    "plain_bundle",
    "rebuilt",
    "refuse_meeting_records",
    "refuse_settings",
    "whole_peak",
]


@dataclass(frozen=True)
class WholeModel:
    """A model to be run under a method.

    Attributes:
        module: in eval mode, `[n, *input.shape] → [n, classes]`.
        architecture: how either side builds it again.
        input: shape and preprocessing of a record.
        class_names: one a class, in label order.
        name: under which a cloud serves it.
        calibration: preprocessed records `[n, *input.shape]` that may be looked at to choose value ranges; none
            where there are none at hand.
    """

    module: nn.Module
    architecture: Architecture
    input: InputSpec
    class_names: tuple[str, ...]
    name: str = "model"
    calibration: Tensor | None = None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        input: InputSpec,
        class_names: Collection[str] | None = None,
        architecture: Architecture | None = None,
        name: str = "model",
        calibration: Tensor | None = None,
    ) -> WholeModel:
        """Check a module and put it together with what is known of it.

        Args:
            module: left in eval mode.
            input: shape and preprocessing of a record.
            class_names: none numbers them.
            architecture: how to build it again; none where the instance tells.
            name: under which a cloud serves it.
            calibration: records that may be looked at.

        Raises:
            ModelError: it does not run on such records, or nobody could build it again.
        """
        known = architecture or infer_target(module)
        if known is None:
            raise ModelError(
                f"{type(module).__name__} cannot be built again from its class alone; name a builder as "
                "package.module:callable"
            )
        count_macs(module, torch.zeros(1, *input.shape))  # refuses what does not run
        module.eval()
        with torch.inference_mode():
            logits = module(torch.zeros(2, *input.shape))
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
            raise ModelError("a model must return logits [n, classes] of at least 2 classes")
        names = tuple(class_names) if class_names is not None else tuple(map(str, range(logits.shape[1])))
        if len(names) != logits.shape[1]:
            raise ModelError(f"the model has {logits.shape[1]} classes, and {len(names)} are named")
        return cls(module, known, input, names, name, calibration)

    @classmethod
    def build(
        cls,
        target: str,
        *,
        input: InputSpec,
        arguments: Mapping[str, Any] | None = None,
        seed: int = 0,
        **known: Any,  # noqa: ANN401
    ) -> WholeModel:
        """Build a target that the caller trusts, its weights a function of the seed; further arguments as `of`.

        Raises:
            ModelError: it does not build, or as `of`.
        """
        full = full_target(target)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = build_target(full, arguments, allowed={full})
        architecture = Architecture(target=full, arguments=dict(arguments or {}))
        return cls.of(module, input=input, architecture=architecture, **known)

    @property
    def classes(self) -> int:
        """Logits a record."""
        return len(self.class_names)

    @property
    def record(self) -> Tensor:
        """A blank record, `[1, *input.shape]`."""
        return torch.zeros(1, *self.input.shape)

    @property
    def macs(self) -> int:
        """A record."""
        return count_macs(self.module, self.record)


def plain_bundle(
    model: WholeModel,
    method: str,
    *,
    private: Mapping[str, Tensor],
    cloud: Mapping[str, Tensor],
    private_macs: int,
    cloud_macs: int,
    peak_private_bytes: int,
    settings: Mapping[str, Any] | None = None,
    architecture: Architecture | None = None,
    logit_bound: float = 1e6,
    labels: str = "none",
    **facts: Any,  # noqa: ANN401
) -> Bundle:
    """A bundle of a method without a release configuration.

    Args:
        model: the whole model.
        method: registry name.
        private: weights of the private half, by name.
        cloud: weights of the cloud half, by name.
        private_macs: a record.
        cloud_macs: a record.
        peak_private_bytes: of live private tensors, for one record.
        settings: what else the method fixes, plain JSON; the cloud reads it.
        architecture: another than the whole model's.
        logit_bound: B.
        labels: what the cloud learns of training labels.
        facts: further ones that only the private side may read.
    """
    copies = {
        side: {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        for side, tensors in (("private", private), ("cloud", cloud))
    }
    manifest = Manifest.sealed(
        name=model.name,
        method=method,
        input=model.input,
        class_names=model.class_names,
        architecture=architecture or model.architecture,
        settings=dict(settings or {}),
        logit_bound=logit_bound,
        labels=labels,
        cloud_weights_hash=weights_hash(copies["cloud"]),
    )
    known = PrivateFacts.without_fusion(
        weights_hash=weights_hash(copies["private"]),
        private_macs=private_macs,
        cloud_macs=cloud_macs,
        peak_private_bytes=peak_private_bytes,
        **facts,
    )
    return Bundle(manifest, known, copies["private"], copies["cloud"], made_here=True)


def allowed_targets(bundle: Bundle, allow: Collection[str]) -> set[str]:
    """Import targets that the private side may build: a bundle trained here needs no leave (I5)."""
    return {*allow, *({bundle.manifest.architecture.target} if bundle.made_here else ())}


def rebuilt(
    part: CloudPart | Bundle,
    weights: Mapping[str, Tensor],
    *,
    allowed: Collection[str] = (),
    adapt: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> nn.Module:
    """The whole model that a manifest declares, with the given weights, in eval mode.

    Args:
        part: with the manifest.
        weights: of the adapted model, by name.
        allowed: import targets that it may name.
        adapt: what a method makes of the built model before the weights are loaded, such as other norms.

    Raises:
        BundleError: the target is not allowed or does not build, or the weights do not fit it.
    """
    architecture = part.manifest.architecture
    try:
        model = adapt(build_target(architecture.target, architecture.arguments, allowed=allowed))
    except ModelError as error:
        raise BundleError(str(error)) from None
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError:
        raise BundleError(
            f"the weights do not fit {architecture.target}; make the bundle again with the code that built it"
        ) from None
    return model.eval()


def whole_peak(model: WholeModel) -> int:
    """Bytes of live tensors while one record passes the whole model."""
    with torch.no_grad():
        return peak_memory(model.module, model.record)


def refuse_meeting_records(model: WholeModel, method: str) -> None:
    """Refuse a model in which records see each other: a cloud answers those of several clients in one batch.

    Args:
        model: run in eval mode and left as it was.
        method: for the text.

    Raises:
        ModelError: naming the module, or saying that an answer changes with the batch.
    """
    module, refused = model.module, f"method {method!r} cannot serve this model"
    first, outlier = record_and_noise(model.record), torch.full_like(model.record, 1e4)
    with evaluating(module):
        try:
            check_per_record(module)
        except ConfigError as error:
            raise ModelError(f"{refused}: {str(error).removeprefix('backbone ')}") from None
        for record in torch.split(first, 1):
            alone = module(record)
            for batch, row in (
                (torch.cat([record, outlier, -outlier]), 0),
                (torch.cat([outlier, record]), 1),
            ):
                # Batches of other sizes are rounded otherwise, by far less than what an outlier does.
                if not torch.allclose(module(batch)[row : row + 1], alone, 1e-3, 1e-3, equal_nan=True):
                    raise ModelError(
                        f"{refused}: a record's answer changes with the other records of its batch, or by "
                        "chance; make the model treat each record by itself in eval mode"
                    )


def refuse_settings(method: str, settings: Collection[str], *, known: Collection[str] = ()) -> None:
    """Refuse settings that a method lacks.

    Raises:
        ConfigError: there is one; the text names it and those that there are.
    """
    if settings:
        some = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"method {method!r} has no setting {', '.join(sorted(settings))}; {some}")
