"""Stage 1, private: the whole model, the frozen backbone, the basis and the main model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from delta.data.records import Dataset
from delta.decomposition.basis import iteration_start, pca_basis, synthetic_images
from delta.decomposition.decomposer import Decomposer
from delta.device import device_of
from delta.errors import ConfigError, ModelError
from delta.models.crop import crop_for
from delta.models.fixed_stem import FixedStem
from delta.models.macs import count_macs, front_macs
from delta.models.main_model import build_main, light_budget
from delta.models.splitting import Parts
from delta.release.config import InputSpec, Provenance
from delta.release.message import MessageMap
from delta.training.checkpoint import FitStore
from delta.training.config import LearnedMessage, TrainConfig
from delta.training.fit import Progress, augmented, fit, logits_of, placed, quiet
from delta.training.message_fit import fit_message, learned_map
from delta.training.small_fit import fit_small

__all__ = ["Labelled", "PrivateStage", "input_spec", "main_logits", "train_private_stage"]

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
        message: a learned message map; none where the run's is fixed.
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
    message: MessageMap | None = None

    def main_logits(self, x: Tensor) -> Tensor:
        """z_main of preprocessed records: `[n, classes]`."""
        return main_logits(self.backbone, self.decomposer, self.main, x)


def main_logits(backbone: nn.Module, decomposer: Decomposer, main: nn.Module, x: Tensor) -> Tensor:
    """z_main of preprocessed records `[n, channels, height, width]`, on the CPU: `[n, classes]`."""
    return logits_of(lambda part: main(decomposer.main_input(decomposer(backbone(part)))), x)


class MainPath(nn.Module):
    """Backbone, decomposition and main model as one: what trains where the backbone is tuned with M_main.

    The basis stays as it was at the start, and the backbone learns to put into its span what M_main needs.
    Shapes: `[n, channels, height, width] → [n, classes]`.
    """

    def __init__(self, backbone: nn.Module, decomposer: Decomposer, main: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(True)
        self.decomposer, self.main = decomposer, main

    def forward(self, x: Tensor) -> Tensor:
        """Preprocessed records → logits."""
        logits: Tensor = self.main(self.decomposer.main_input(self.decomposer(self.backbone(x))))
        return logits


def input_spec(shape: tuple[int, int, int]) -> InputSpec:
    """Preprocessing by constants: statistics of private images would be part of the release configuration."""
    return InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])


def train_private_stage(
    parts: Parts,
    data: Dataset,
    config: TrainConfig,
    *,
    progress: Progress = quiet,
    store: FitStore | None = None,
) -> PrivateStage:
    """Run stage 1 in this process. `parts.model` is trained in place where `config.whole` is set.

    Args:
        parts: the split model.
        data: training records; a share of them is held out.
        config: of the run.
        progress: told after every step.
        store: where finished fits are taken from, and interrupted ones go on.

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
    if isinstance(config.message, LearnedMessage):
        learned_map(config, parts)
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
        _train_whole(whole, x, y, config, progress=progress, store=store)
    whole.eval()
    backbone, backbone_provenance = _frozen_backbone(parts, config)
    decomposer, basis_provenance = _decomposer(backbone.to(device), parts, config)
    small = MainPath(backbone, decomposer, main) if config.tune_backbone else main
    fit_small(
        small,
        (lambda images: images)
        if config.tune_backbone
        else (lambda images: decomposer.main_input(decomposer(backbone(images)))),
        x=x,
        y=y,
        teacher=whole if config.main.distil else None,
        config=config,
        progress=progress,
        stage="main model",
        checkpoints=store.of("main", {**config.private_settings, "model": main.settings}) if store else None,
    )
    backbone.eval().requires_grad_(False)
    message = None
    if isinstance(config.message, LearnedMessage):
        message = fit_message(
            parts, backbone, decomposer, x=x, y=y, input=spec, config=config, progress=progress, store=store
        )
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
        message=message,
    )


def _main_budget(parts: Parts, config: TrainConfig, decomposer: Decomposer) -> int | None:
    """MACs that the main model may take; none for the authors' layout.

    Raises:
        ModelError: backbone and decomposition alone are over the budget of the private path.
    """
    if config.main.layout == "authors" or config.main.max_macs is not None:
        return config.main.max_macs
    record = torch.zeros(1, *parts.input_shape)
    if config.main.private_macs is not None:
        backbone = _fixed_stem(parts) if config.backbone == "fixed" else parts.backbone
        learned = config.message if isinstance(config.message, LearnedMessage) else None
        spent = front_macs(
            backbone,
            decomposer,
            record,
            k=config.channels or 1 if learned is None else learned.k,
            offload=config.offload,
            stride=None if learned is None else learned.stride,
        )
        left = config.main.private_macs - spent
        if left < 1:
            raise ModelError(
                f"backbone and decomposition take {spent:,} MACs, private_macs is {config.main.private_macs:,}; "
                "raise it, lower the rank, or split earlier"
            )
        return left
    whole = count_macs(parts.model, record)
    channels, *size = decomposer.main_shape
    return light_budget(whole, in_channels=channels, size=size, classes=parts.classes)


def _fixed_stem(parts: Parts) -> FixedStem:
    channels, height, _ = parts.input_shape
    return FixedStem(in_channels=channels, ir_shape=parts.ir_shape, stride=height // parts.ir_shape[1])


def _train_whole(
    whole: nn.Module,
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
    *,
    progress: Progress,
    store: FitStore | None,
) -> None:
    if config.whole is None:
        return
    generator = torch.Generator().manual_seed(config.seed)
    fit(
        whole,
        lambda net, index: net(augmented(x[index], config.augment, generator=generator)),
        lambda logits, index: nn.functional.cross_entropy(logits, y[index], label_smoothing=0.05),
        records=len(y),
        config=config.whole,
        generator=generator,
        progress=progress,
        stage="whole model",
        checkpoints=store.of("whole", config.whole_settings) if store else None,
        precision=config.precision,
        orthogonality=config.orthogonality,
    )


def _frozen_backbone(parts: Parts, config: TrainConfig) -> tuple[nn.Module, Provenance]:
    if config.backbone == "fixed":
        return _fixed_stem(parts).eval(), Provenance(
            kind="data-independent", note="seeded filters, nothing learned"
        )
    # A copy: the owner may go on training the model, and the release configuration must not move with it.
    backbone = copy.deepcopy(parts.backbone).eval().requires_grad_(False)
    if config.backbone_provenance is not None:
        return backbone, config.backbone_provenance
    how = "trained on the training records" if config.whole is not None else "as the owner's model came"
    tuned = ", then with the main model" if config.tune_backbone else ""
    note = f"{how}{tuned}, frozen before any release"
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
    kind: Literal["data-independent", "private"] = "data-independent"
    if config.basis == "pca":
        images = synthetic_images(_SYNTHETIC_IMAGES, parts.input_shape, seed=config.seed)
        device = next(iter([*backbone.parameters(), *backbone.buffers()]), torch.zeros(())).device
        with torch.no_grad():
            samples = backbone(images.to(device))  # they are made as preprocessed records
        basis = pca_basis(samples.float().cpu(), config.rank_of(parts.ir_shape[0]))
        note = f"given the backbone: pca of its output on {_SYNTHETIC_IMAGES} seeded synthetic 1/f images"
        if config.tune_backbone:
            # The backbone learns to use this basis; what it was computed from is in no release configuration.
            kind, note = (
                "private",
                note.replace("the backbone:", "the backbone as it was before it was tuned:"),
            )
    else:
        note = "computed from each record alone"
        if config.algorithm == "approximate":
            start = iteration_start(parts.ir_shape[0], config.rank_of(parts.ir_shape[0]), seed=config.seed)
            note += ", the iteration's start is seeded"
    decomposer = _decomposer_of(parts, config, basis=basis, start=start)
    return decomposer.eval().to(torch.device(config.device)), Provenance(kind=kind, note=note)
