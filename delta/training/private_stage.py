"""Stage 1, private: the whole model, the frozen backbone, the basis and the main model."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.data.records import Dataset
from delta.decomposition.basis import iteration_start, pca_basis, synthetic_images
from delta.decomposition.decomposer import Decomposer
from delta.device import device_of
from delta.errors import ConfigError
from delta.models.crop import crop_for
from delta.models.fixed_stem import FixedStem
from delta.models.macs import count_macs
from delta.models.main_model import build_main, light_budget
from delta.models.splitting import Parts
from delta.release.config import InputSpec, Provenance
from delta.training.cache import WeightCache
from delta.training.config import TrainConfig
from delta.training.fit import Progress, augmented, distillation_loss, fit, logits_of, placed, quiet

__all__ = ["Labelled", "PrivateStage", "input_spec", "train_private_stage"]

_SYNTHETIC_IMAGES = 256


@dataclass(frozen=True)
class Labelled:
    """Preprocessed records `[n, channels, height, width]` with labels `[n]`, opaque ids and subjects."""

    x: Tensor
    y: Tensor
    ids: tuple[str, ...]
    subjects: tuple[str, ...]

    @classmethod
    def of(cls, data: Dataset, spec: InputSpec) -> Labelled:
        """Preprocess a data set."""
        return cls(spec.preprocess(data.images), data.labels, data.ids, data.subjects)


@dataclass(frozen=True)
class PrivateStage:
    """What stage 1 leaves: everything but the release, trained and frozen.

    Attributes:
        split: the user's model, split; its whole model is trained.
        input: preprocessing.
        backbone: φ.
        backbone_provenance: whom the claim covers.
        decomposer: with its basis.
        basis_provenance: of the basis or of the iteration's start.
        main: M_main.
        main_settings: arguments that rebuild it.
        fit: records on which the models are trained.
        held_out: records on which only α is fitted.
    """

    split: Parts
    input: InputSpec
    backbone: nn.Module
    backbone_provenance: Provenance
    decomposer: Decomposer
    basis_provenance: Provenance
    main: nn.Module
    main_settings: dict[str, object]
    fit: Labelled
    held_out: Labelled

    @torch.inference_mode()
    def main_logits(self, x: Tensor) -> Tensor:
        """z_main of preprocessed records: `[n, classes]`."""
        return logits_of(
            lambda part: self.main(self.decomposer.main_input(self.decomposer(self.backbone(part)))), x
        )


def input_spec(shape: tuple[int, int, int]) -> InputSpec:
    """Preprocessing by constants: statistics of private images would be part of the release configuration."""
    return InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])


def train_private_stage(
    parts: Parts,
    data: Dataset,
    config: TrainConfig,
    *,
    progress: Progress = quiet,
    cache: WeightCache | None = None,
) -> PrivateStage:
    """Run stage 1 in this process. `parts.model` is trained in place where `config.whole` is set.

    Args:
        parts: the split model.
        data: training records; a share of them is held out.
        config: of the run.
        progress: told after every step.
        cache: where trained weights are taken from and kept.

    Raises:
        ConfigError: data, model and settings do not fit together, or the device is not there; raised before
            the first step.
    """
    spec = input_spec(parts.input_shape)
    if data.image_shape != parts.input_shape:
        raise ConfigError(
            f"the model takes images of {parts.input_shape}, data set {data.name!r} has {data.image_shape}"
        )
    if len(data.class_names) != parts.classes:
        raise ConfigError(
            f"the model has {parts.classes} classes, data set {data.name!r} has {len(data.class_names)}"
        )
    rest, kept = data.stratified_split(fraction=config.held_out, seed=config.seed)
    training, held_out = Labelled.of(rest, spec), Labelled.of(kept, spec)
    device = device_of(config.device)
    draft = _decomposer_of(parts, config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        main = build_main(
            layout=config.main.layout,
            in_channels=draft.main_channels,
            size=draft.main_shape[1:],
            classes=parts.classes,
            max_macs=_main_budget(parts, config, draft),
            rank=draft.rank if config.main.layout == "authors" else None,
            cropped=draft.keep < draft.block,
        )
    placed(main, device)
    x, y = training.x.to(device), training.y.to(device)
    whole = placed(parts.to(device).model, device)
    if config.whole is not None:
        _train_whole(whole, x, y, config, progress=progress, cache=cache)
    whole.eval()
    backbone, backbone_provenance = _frozen_backbone(parts, config)
    decomposer, basis_provenance = _decomposer(backbone.to(device), parts, config)
    if cache is None or not cache.restore("main", config.private_settings, main):
        _train_main(main, backbone, decomposer, whole, x, y, config, progress=progress)
        if cache is not None:
            cache.keep("main", config.private_settings, main)
    main.eval()
    parts.to("cpu")
    return PrivateStage(
        split=parts,
        input=spec,
        backbone=backbone.cpu(),
        backbone_provenance=backbone_provenance,
        decomposer=decomposer.cpu(),
        basis_provenance=basis_provenance,
        main=main.cpu(),
        main_settings=main.settings,
        fit=training,
        held_out=held_out,
    )


def _main_budget(parts: Parts, config: TrainConfig, decomposer: Decomposer) -> int | None:
    if config.main.layout == "authors" or config.main.max_macs is not None:
        return config.main.max_macs
    whole = count_macs(parts.model, torch.zeros(1, *parts.input_shape))
    channels, *size = decomposer.main_shape
    return light_budget(whole, in_channels=channels, size=size, classes=parts.classes)


def _train_whole(
    whole: nn.Module,
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
    *,
    progress: Progress,
    cache: WeightCache | None,
) -> None:
    if config.whole is None or (cache is not None and cache.restore("whole", config.private_settings, whole)):
        return
    generator = torch.Generator().manual_seed(config.seed)
    fit(
        whole,
        lambda index: whole(augmented(x[index], config.augment, generator=generator)),
        lambda logits, index: nn.functional.cross_entropy(logits, y[index], label_smoothing=0.05),
        records=len(y),
        config=config.whole,
        generator=generator,
        progress=progress,
        stage="whole model",
    )
    if cache is not None:
        cache.keep("whole", config.private_settings, whole)


def _frozen_backbone(parts: Parts, config: TrainConfig) -> tuple[nn.Module, Provenance]:
    if config.backbone == "fixed":
        channels, height, _ = parts.input_shape
        stem = FixedStem(in_channels=channels, ir_shape=parts.ir_shape, stride=height // parts.ir_shape[1])
        return stem.eval(), Provenance(kind="data-independent", note="seeded filters, nothing learned")
    # A copy: the owner may go on training the model, and the release configuration must not move with it.
    backbone = copy.deepcopy(parts.backbone).eval().requires_grad_(False)
    how = "trained on the training records" if config.whole is not None else "as the owner's model came"
    note = f"{how}, frozen before any release"
    return backbone, Provenance(kind="private", note=note)


def _decomposer_of(
    parts: Parts, config: TrainConfig, *, basis: Tensor | None = None, start: Tensor | None = None
) -> Decomposer:
    channels, height, width = parts.ir_shape
    block, keep = crop_for(parts.ir_shape, block=config.block, keep=config.keep)
    return Decomposer(
        channels=channels,
        height=height,
        width=width,
        rank=config.rank_of(channels),
        block=block,
        keep=keep,
        kind=config.basis,
        algorithm=config.algorithm,
        basis=basis,
        start=start,
    )


def _decomposer(backbone: nn.Module, parts: Parts, config: TrainConfig) -> tuple[Decomposer, Provenance]:
    basis = start = None
    if config.basis == "pca":
        images = synthetic_images(_SYNTHETIC_IMAGES, parts.input_shape, seed=config.seed)
        device = next(iter([*backbone.parameters(), *backbone.buffers()]), torch.zeros(())).device
        with torch.no_grad():
            samples = backbone(images.to(device))  # they are made as preprocessed records
        basis = pca_basis(samples.float().cpu(), config.rank_of(parts.ir_shape[0]))
        note = f"given the backbone: pca of its output on {_SYNTHETIC_IMAGES} seeded synthetic 1/f images"
    else:
        note = "computed from each record alone"
        if config.algorithm == "approximate":
            start = iteration_start(parts.ir_shape[0], config.rank_of(parts.ir_shape[0]), seed=config.seed)
            note += ", the iteration's start is seeded"
    decomposer = _decomposer_of(parts, config, basis=basis, start=start)
    return decomposer.eval().to(torch.device(config.device)), Provenance(kind="data-independent", note=note)


def _train_main(
    main: nn.Module,
    backbone: nn.Module,
    decomposer: Decomposer,
    whole: nn.Module,
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
    *,
    progress: Progress,
) -> None:
    """Train M_main on the principal part; p is computed once where nothing is augmented: φ is frozen."""
    generator = torch.Generator().manual_seed(config.seed + 1)
    teacher: list[Tensor] = []  # the teacher's logits on the views that `forward` has just drawn

    @torch.no_grad()
    def view_of(images: Tensor) -> Tensor:
        return decomposer.main_input(decomposer(backbone(images)))

    cached_view = cached_teacher = None
    if config.augment == "none":
        cached_view = torch.cat([view_of(part) for part in torch.split(x, 256)])
        if config.main.distil:
            cached_teacher = logits_of(whole, x).to(x.device)

    def forward(index: Tensor) -> Tensor:
        if cached_view is not None:
            return main(cached_view[index])  # type: ignore[no-any-return]
        images = augmented(x[index], config.augment, generator=generator)
        if config.main.distil:
            with torch.no_grad():
                teacher[:] = [whole(images)]
        return main(view_of(images))  # type: ignore[no-any-return]

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        if not config.main.distil:
            return nn.functional.cross_entropy(logits, y[index])
        reference = cached_teacher[index] if cached_teacher is not None else teacher[0]
        return distillation_loss(logits, y[index], reference)

    fit(
        main,
        forward,
        loss,
        records=len(y),
        config=config.main_fit,
        generator=generator,
        progress=progress,
        stage="main model",
    )
