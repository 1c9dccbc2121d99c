"""Run the demonstration: train or restore, start a cloud in another process, send the test set through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

import delta
from delta.bundle.store import Bundle, export_cloud_part, save_bundle
from delta.data.records import DataSplits
from delta.demo.leakage import Leakage, measure_leakage
from delta.demo.settings import DemoSettings
from delta.methods.base import Cost, Prediction
from delta.models.splitting import split
from delta.privacy.claim import PrivacyClaim, claim_of
from delta.release.ids import RecordIds
from delta.release.noise import NoiseKey
from delta.training.api import lineage_of
from delta.training.assemble import assemble_bundle
from delta.training.checkpoint import FitStore
from delta.training.cloud_stage import CloudStage, Stage2, train_cloud_stage
from delta.training.config import TrainConfig
from delta.training.controls import Controls, accuracy, beats, measure_controls
from delta.training.fit import Progress
from delta.training.main_only import MainOnly, train_main_only
from delta.training.private_stage import Labelled, PrivateStage, train_private_stage

__all__ = ["Connect", "DemoResult", "Launch", "Row", "run_demo"]


class _Client(Protocol):
    def predict(self, x: Tensor, ids: RecordIds | None = None) -> Prediction: ...

    @property
    def handshake_bytes(self) -> tuple[int, int]: ...


Launch = Callable[[list[Path], int], AbstractContextManager[str]]
"""Start a cloud that serves the exported parts in these folders on so many threads; gives its address."""

Connect = Callable[[Bundle, str, NoiseKey], AbstractContextManager[_Client]]
"""Open the private side's session with a cloud."""


@dataclass(frozen=True)
class Row:
    """One release, measured: accuracies in percent, times in ms a record, sizes in bytes a record."""

    name: str
    config: TrainConfig
    stage: CloudStage
    controls: Controls
    delta_accuracy: float
    gain: int
    loss: int
    private_ms: float
    cloud_ms: float
    wall_ms: float
    bytes_up: float
    bytes_down: float
    certified: float
    fallbacks: int
    claim: PrivacyClaim
    leakage: Leakage
    payloads: Tensor
    right: Tensor

    @property
    def cloud_helps(self) -> bool:
        """Whether Delta beats its main model alone beyond chance."""
        return beats(self.gain, self.loss)

    def beats_main_only(self, main_only: MainOnly) -> bool:
        """Whether Delta beats the best main-only model of the same private MACs beyond chance."""
        gain = int((self.right & ~main_only.right).sum())
        return beats(gain, int((main_only.right & ~self.right).sum()))


@dataclass(frozen=True)
class DemoResult:
    """All rows, over one private stage.

    Attributes:
        data: what it ran on.
        private: stage 1.
        rows: by name, `main` first.
        bundle: folder of the main row's bundle.
        test: the test records, preprocessed.
        batch: records a request.
        threads: of the private side while it predicted.
        main_only: the best main-only model of the main row's private MACs.
        private_macs: of the main row, per record.
    """

    data: DataSplits
    private: PrivateStage
    rows: dict[str, Row]
    bundle: Path
    test: Labelled
    batch: int
    threads: int
    main_only: MainOnly
    private_macs: int


def run_demo(
    data: DataSplits,
    settings: DemoSettings,
    *,
    out: Path,
    launch: Launch,
    connect: Connect,
    progress: Progress,
) -> DemoResult:
    """Train or restore every row, then send the test set through a cloud process and attack what it got.

    Args:
        data: training and test records.
        settings: of the demonstration.
        out: folder for bundles, exported cloud parts and cached weights.
        launch: starts the cloud process.
        connect: opens a session with it.
        progress: told after every step of a fit.
    """
    _, channels, height, width = data.train.images.shape
    architecture_arguments = {"classes": len(data.train.class_names), "in_channels": channels}
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        parts = split(
            "delta.models:resnet_small",
            at="layer1",
            example=torch.zeros(2, channels, height, width),
            arguments=architecture_arguments,
        )
    store = FitStore(
        out / "cache",
        {"data": data.train.fingerprint(), "model": architecture_arguments, "delta": delta.__version__},
    )
    configs = settings.rows(channels)
    private = train_private_stage(parts, data.train, configs["main"], progress=progress, store=store)
    test = Labelled.of(data.test, private.input)

    stages: dict[str, CloudStage] = {}
    controls: dict[str, Controls] = {}
    bundles: dict[str, Bundle] = {}
    folders: dict[str, Path] = {}
    for name, config in configs.items():
        stage = train_cloud_stage(
            private,
            config,
            where=Stage2(folder=out / "cache", store=store),
            progress=progress,
            label=f"cloud model, row {name}",
        )
        controls[name] = measure_controls(
            private, stage, test, config, key=NoiseKey.generate(), noiseless=stages.get("main")
        ).controls
        stages[name] = stage
        bundles[name] = assemble_bundle(
            private,
            stage,
            config,
            class_names=tuple(data.train.class_names),
            lineage=lineage_of(config, data.train),
            figures=vars(controls[name]),
        )
        whole = out / ("bundle" if name == "main" else f"bundle-{name}")
        save_bundle(bundles[name], whole)
        folders[name] = export_cloud_part(bundles[name].cloud_part, out / "cloud" / name)

    private_macs = bundles["main"].facts.private_macs
    main_only = train_main_only(
        private, configs["main"], test, private_macs=private_macs, progress=progress, store=store
    )
    rows: dict[str, Row] = {}
    cores = torch.get_num_threads()
    share = max(1, cores // 2)
    # Both sides run on this machine: each gets half of its cores, or they would wait for each other's threads.
    with launch(list(folders.values()), cores - share or 1) as address, _threads(share):
        answers = {
            name: _through_the_cloud(bundles[name], test, address, connect, settings.batch)
            for name in configs
        }
    for name, config in configs.items():
        predictions, extra_bytes = answers[name]
        rows[name] = _row(
            name,
            config,
            stages[name],
            controls[name],
            predictions,
            extra_bytes,
            data,
            private,
            test,
            settings,
            progress,
        )
    return DemoResult(
        data, private, rows, out / "bundle", test, settings.batch, share, main_only, private_macs
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _through_the_cloud(
    bundle: Bundle, test: Labelled, address: str, connect: Connect, batch: int
) -> tuple[list[Prediction], tuple[int, int]]:
    predictions = []
    # The key lives for this run only: the demo's test set is released once and the bytes are not kept.
    with connect(bundle, address, NoiseKey.generate()) as client:
        # The first request is asked twice: a repeated query sends the stored bytes, and the second answer is
        # free of what the cloud does only once. Its bytes count.
        starts = range(0, len(test.y), batch)
        for start in (0, *starts):
            stop = start + batch
            ids = RecordIds(records=test.ids[start:stop], subjects=test.subjects[start:stop])
            predictions.append(client.predict(test.x[start:stop], ids))
        first = predictions.pop(0).cost
        up, down = client.handshake_bytes
        return predictions, (up + first.bytes_up, down + first.bytes_down)


def _claim(stage: CloudStage) -> PrivacyClaim:
    claim = claim_of(stage.release, labels="disclosed")
    if claim.epsilon is None:
        return claim
    joint = (
        "of this release alone: to compare rows, this demonstration also sent the same records without noise, "
        "and for both together there is no claim"
    )
    return replace(claim, conditions=(*claim.conditions, joint))


def _row(
    name: str,
    config: TrainConfig,
    stage: CloudStage,
    controls: Controls,
    predictions: list[Prediction],
    extra_bytes: tuple[int, int],
    data: DataSplits,
    private: PrivateStage,
    test: Labelled,
    settings: DemoSettings,
    progress: Progress,
) -> Row:
    records = len(test.y)
    logits = torch.cat([p.logits for p in predictions])
    z_main = torch.cat([p.extras["z_main"] for p in predictions])
    payloads = torch.cat([p.extras["payload"] for p in predictions])
    z_cloud = torch.cat(
        [p.extras["z_cloud"] if p.used_cloud else torch.zeros_like(p.logits) for p in predictions]
    )
    right, right_alone = logits.argmax(1) == test.y, z_main.argmax(1) == test.y
    costs: list[Cost] = [p.cost for p in predictions]
    auxiliary = Labelled.of(data.train, private.input)
    leakage = measure_leakage(
        stage,
        auxiliary=auxiliary,
        auxiliary_images=data.train.images,
        test=test,
        test_images=data.test.images,
        payloads=payloads,
        z_cloud=z_cloud,
        seconds=settings.attack_seconds,
        seed=settings.seed,
        progress=progress,
        label=f"attack, row {name}",
    )
    return Row(
        name=name,
        config=config,
        stage=stage,
        controls=controls,
        delta_accuracy=accuracy(logits, test.y),
        gain=int((right & ~right_alone).sum()),
        loss=int((right_alone & ~right).sum()),
        private_ms=sum(c.private_ms for c in costs) / records,
        cloud_ms=sum(c.cloud_ms for c in costs) / records,
        wall_ms=sum(c.wall_ms for c in costs) / records,
        bytes_up=(sum(c.bytes_up for c in costs) + extra_bytes[0]) / records,
        bytes_down=(sum(c.bytes_down for c in costs) + extra_bytes[1]) / records,
        certified=sum(p.extras["certified"] * len(p.logits) for p in predictions) / records,
        fallbacks=sum(len(p.logits) for p in predictions if not p.used_cloud),
        claim=_claim(stage),
        leakage=leakage,
        payloads=payloads,
        right=right,
    )
